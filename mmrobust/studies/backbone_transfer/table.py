"""The figures of a study: mean and spread, table, picture."""

from __future__ import annotations

import json
import math
import platform
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import get_world_size, is_main_process

from ...report import package_versions
from ...utils.files import write_atomically
from .plan import Run, Sweep, number
from .plot import draw
from .preflight import Findings


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over seeds, with the learning rate that is best per eps and mode.

    Args:
        results: finished runs with ``eps``, ``mode``, ``lr``, ``seed``, ``value`` (what
            is reported) and ``selected_by`` (what chooses the learning rate; higher is
            better, None is a run without a number).

    Returns:
        One row per eps and mode, in rising order of eps: ``lr``, ``mean``, ``std`` (of
        the sample, with n - 1; None for one seed), ``n``, ``values`` by seed, and
        ``by_lr`` with the same for every learning rate.
    """
    groups: dict[tuple[float, str], dict[float, list]] = {}
    for result in results:
        key = (result['eps'], result['mode'])
        groups.setdefault(key, {}).setdefault(result['lr'], []).append(result)
    rows = []
    for (eps, mode), by_lr in sorted(groups.items()):
        tried = [_statistics(lr, runs) for lr, runs in sorted(by_lr.items())]
        # One that has been tried with fewer seeds is not chosen yet.
        most = max(entry['n'] for entry in tried)
        chosen = max(
            (entry for entry in tried if entry['n'] == most),
            key=lambda e: -math.inf if e['selected_by'] is None else e['selected_by'],
        )
        rows.append({'eps': eps, 'mode': mode, **chosen, 'by_lr': tried})
    return rows


def _statistics(lr: float, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    runs = sorted(runs, key=lambda run: run['seed'])
    values = [run['value'] for run in runs]
    chosen_by = [run['selected_by'] for run in runs]
    complete = None not in values
    return {
        'lr': lr,
        'n': len(values),
        'mean': statistics.fmean(values) if complete else None,
        'std': statistics.stdev(values) if complete and len(values) > 1 else None,
        'selected_by': None if None in chosen_by else statistics.fmean(chosen_by),
        'values': {str(run['seed']): run['value'] for run in runs},
    }


class Study:
    """Results of a sweep and what is needed to read and repeat them.

    Args:
        sweep: the study.
        found: what the checks before it have found out.
        results: result of each run, None while it is to be run.
        command: how it was called.
    """

    def __init__(
        self,
        sweep: Sweep,
        found: Findings,
        results: dict[Run, dict | None],
        command: Sequence[str],
    ) -> None:
        self.sweep = sweep
        self.found = found
        self.results = results
        self.command = list(command)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """See :func:`summarize`."""
        return summarize([result for result in self.results.values() if result])

    @property
    def _digits(self) -> int:
        """Mmpretrain's accuracies are in percent, mmdet's AP in [0, 1]."""
        return 2 if any(abs(row['mean'] or 0) > 1 for row in self.rows) else 4

    @property
    def complete(self) -> bool:
        """Whether every run has been run."""
        return None not in self.results.values()

    def notes(self) -> list[str]:
        """What makes the figures doubtful."""
        notes = list(self.found.notes)
        finished = [result for result in self.results.values() if result]
        if len(self.sweep.seeds) == 1:
            notes.append('One seed: differences may be chance.')
        versions = {json.dumps(r['versions'], sort_keys=True) for r in finished}
        if len(versions) > 1:
            notes.append('The runs were made with different versions of packages.')
        notes += [
            f'{run.name}: the figure is no number; training has diverged or nothing '
            'was found.'
            for run, result in self.results.items()
            if result and result['value'] is None
        ]
        return notes

    def as_dict(self) -> dict[str, Any]:
        """The content of ``transfer.json``."""
        sweep, found = self.sweep, self.found
        return {
            'config': sweep.cfg.filename,
            'metric': found.metric,
            'complete': self.complete,
            'norm': sweep.norm,
            'checkpoints': [
                {
                    'eps': eps,
                    'path': path,
                    'sha256': found.hashes[eps],
                    'backbone_sha256': found.backbones[eps],
                }
                for eps, path in sweep.checkpoints.items()
            ],
            'modes': list(sweep.modes),
            'lrs': list(sweep.lrs),
            'seeds': list(sweep.seeds),
            'selection': found.selection,
            'rows': self.rows,
            'runs': [result for result in self.results.values() if result],
            'checks': self.notes(),
            'versions': package_versions(),
            'environment': {
                'command': self.command,
                'date': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
                'python': platform.python_version(),
                'platform': platform.platform(),
                'processes': get_world_size(),
            },
            'config_text': sweep.cfg.pretty_text,
        }

    def table(self) -> str:
        """Mean and spread per eps and mode; the best of each mode is bold."""
        sweep = self.sweep
        rows = {(row['eps'], row['mode']): row for row in self.rows}
        best = {
            mode: max(
                (
                    r['mean']
                    for r in rows.values()
                    if r['mode'] == mode and r['mean'] is not None
                ),
                default=None,
            )
            for mode in sweep.modes
        }
        several = len(sweep.lrs) > 1
        head = [f'eps ({sweep.norm})']
        for mode in sweep.modes:
            head += [mode, f'change from eps {number(min(sweep.checkpoints))}']
            head += ['lr'] if several else []
        lines = [head, ['---:'] * len(head)]
        for eps in sweep.checkpoints:
            cells = [number(eps)]
            for mode in sweep.modes:
                row = rows.get((eps, mode))
                start = rows.get((min(sweep.checkpoints), mode))
                cells += [
                    self._cell(row, best[mode]),
                    _change(row, start, self._digits)
                    if eps != min(sweep.checkpoints)
                    else '',
                ]
                cells += [number(row['lr']) if row else ''] if several else []
            lines.append(cells)
        return _markdown(lines)

    def _cell(self, row: dict[str, Any] | None, best: float | None) -> str:
        if row is None or row['mean'] is None:
            return '-'
        digits = self._digits
        text = f'{row["mean"]:.{digits}f}'
        text = f'**{text}**' if row['mean'] == best else text
        if row['std'] is not None:
            text += f' ± {row["std"]:.{digits}f}'
        if row['n'] < len(self.sweep.seeds):
            text += f' ({row["n"]} of {len(self.sweep.seeds)} seeds)'
        return text

    def markdown(self) -> str:
        """The content of ``transfer.md``."""
        sweep, found = self.sweep, self.found
        lines = ['# Transfer of robust backbones', '']
        if not self.complete:
            todo = sum(result is None for result in self.results.values())
            lines += [
                f'**Not complete: {todo} of {len(self.results)} runs to go.**',
                '',
            ]
        spread = (
            f'mean ± standard deviation over the seeds {_listed(sweep.seeds)}'
            if len(sweep.seeds) > 1
            else f'seed {sweep.seeds[0]}'
        )
        lines += [
            self.table(),
            '',
            f'{found.metric} of the last checkpoint; {spread}. eps and norm are those '
            "of the backbone's pre-training. fixed: the backbone stays as it is, in "
            'eval mode; full: it learns with the rest.',
        ]
        lines += ['', '![eps against the figure](transfer.png)'] if self.rows else []
        lines += ['', '## Checks', '']
        lines += [f'- {note}' for note in self.notes()] or ['No warnings.']
        if len(sweep.lrs) > 1:
            lines += ['', '## By learning rate', '', self._by_lr()]
        lines += ['', '## Checkpoints', '']
        lines += [
            _markdown(
                [['eps', 'file', 'sha256'], ['---:', '---', '---']]
                + [
                    [number(eps), path, found.hashes[eps] or '']
                    for eps, path in sweep.checkpoints.items()
                ]
            )
        ]
        lines += ['', '## How to repeat it', '']
        versions = ', '.join(f'{k} {v}' for k, v in package_versions().items())
        lines += [
            f'- command: `{shlex.join(self.command)}`',
            f'- config: {sweep.cfg.filename}',
            f'- learning rates: {_listed(sweep.lrs)}',
            f'- seeds: {_listed(sweep.seeds)}',
            f'- processes: {get_world_size()}',
            f'- versions: {versions}, Python {platform.python_version()}',
        ]
        return '\n'.join(lines) + '\n'

    def _by_lr(self) -> str:
        chosen_by = self.found.selection or self.found.metric
        lines = [['eps', 'mode', 'lr', self.found.metric, 'chosen by', 'chosen']]
        lines += [['---:', '---', '---:', '---:', '---:', '---']]
        if self.found.selection:
            lines[0][4] = f'{chosen_by} (validation)'
        for row in self.rows:
            for entry in row['by_lr']:
                score = entry['selected_by']
                lines.append(
                    [
                        number(row['eps']),
                        row['mode'],
                        number(entry['lr']),
                        self._cell(entry, None),
                        '-' if score is None else f'{score:.{self._digits}f}',
                        'yes' if entry['lr'] == row['lr'] else '',
                    ]
                )
        return _markdown(lines)

    def write(self) -> None:
        """Writes ``transfer.json``, ``.md`` and ``.png``, on the main process."""
        if not is_main_process():
            return
        folder = self.sweep.work_dir
        text = json.dumps(self.as_dict(), indent=2, default=str)
        write_atomically(folder / 'transfer.json', text + '\n')
        write_atomically(folder / 'transfer.md', self.markdown())
        if self.rows:
            draw(
                self.rows,
                self.found.metric,
                self.sweep.norm,
                folder / 'transfer.png',
                len(self.sweep.seeds),
            )


def _change(
    row: dict[str, Any] | None, start: dict[str, Any] | None, digits: int
) -> str:
    if not row or not start or row['mean'] is None or start['mean'] is None:
        return '-'
    return f'{row["mean"] - start["mean"]:+.{digits}f}'


def _listed(values: Sequence[float]) -> str:
    return ', '.join(number(value) for value in values)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
