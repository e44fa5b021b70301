"""The figures of a backbone-transfer study: mean and spread, table, picture."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from mmengine.dist import get_world_size, is_main_process

from ..report import markdown_table, package_versions
from .backbone_plan import MODES, Findings, Run, Sweep, short
from .study import environment, markdown, new_figure, versions_text, write_report

# Told apart in print without colour, too.
_STYLES = {'fixed': ('o', '--'), 'full': ('s', '-')}


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Computes mean and spread over seeds, with the best learning rate of each row.

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


@dataclass
class Study:
    """Results of a sweep and what is needed to read and repeat them.

    Attributes:
        sweep: the study.
        found: what the checks before it have found out.
        results: result of each run, None while it is to be run.
        command: how it was called.
    """

    sweep: Sweep
    found: Findings
    results: dict[Run, dict | None]
    command: list[str]

    @property
    def finished(self) -> list[dict[str, Any]]:
        """Results of the runs that have been run."""
        return [result for result in self.results.values() if result]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """See :func:`summarize`."""
        return summarize(self.finished)

    @property
    def complete(self) -> bool:
        """True once every run has been run."""
        return None not in self.results.values()

    def notes(self) -> list[str]:
        """Says what makes the figures doubtful."""
        notes = list(self.found.notes)
        if len(self.sweep.seeds) == 1:
            notes.append('One seed: differences may be chance.')
        versions = {json.dumps(r['versions'], sort_keys=True) for r in self.finished}
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
        """Returns the content of ``transfer.json``."""
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
            'runs': self.finished,
            'checks': self.notes(),
            'versions': package_versions(),
            'environment': {
                **environment(self.command),
                'processes': get_world_size(),
            },
            'config_text': sweep.cfg.pretty_text,
        }

    def table(self) -> str:
        """Writes mean and spread per eps and mode; the best of each mode is bold."""
        sweep, first = self.sweep, min(self.sweep.checkpoints)
        rows = {(row['eps'], row['mode']): row for row in self.rows}
        head = [f'eps ({sweep.norm})']
        lines = [[short(eps)] for eps in sweep.checkpoints]
        for mode in sweep.modes:
            means = [r['mean'] for (_, m), r in rows.items() if m == mode]
            best = max((mean for mean in means if mean is not None), default=None)
            start = (rows.get((first, mode)) or {}).get('mean')
            head += [mode, f'change from eps {short(first)}']
            for line, eps in zip(lines, sweep.checkpoints, strict=True):
                row = rows.get((eps, mode)) or {'mean': None, 'lr': None}
                change = '-'
                if row['mean'] is not None and start is not None:
                    change = f'{row["mean"] - start:+.{self._digits}f}'
                line += [self._cell(row, best), '' if eps == first else change]
            if len(sweep.lrs) > 1:
                head.append('lr')
                for line, eps in zip(lines, sweep.checkpoints, strict=True):
                    known = rows.get((eps, mode))
                    line.append(short(known['lr']) if known else '')
        return markdown_table(head, lines, 'r')

    def markdown(self) -> str:
        """Writes the content of ``transfer.md``."""
        sweep, found = self.sweep, self.found
        todo = len(self.results) - len(self.finished)
        seeds = ', '.join(map(short, sweep.seeds))
        several = len(sweep.seeds) > 1
        spread = 'mean ± standard deviation over the seeds' if several else 'seed'
        files = [
            [short(eps), path, found.hashes[eps] or '']
            for eps, path in sweep.checkpoints.items()
        ]
        facts = [
            f'command: `{shlex.join(self.command)}`',
            f'config: {sweep.cfg.filename}',
            f'learning rates: {", ".join(map(short, sweep.lrs))}',
            f'seeds: {seeds}',
            f'processes: {get_world_size()}',
            f'versions: {versions_text()}, Python {environment([])["python"]}',
        ]
        missing = f'{todo} of {len(self.results)} runs to go' if todo else ''
        blocks = [
            self.table(),
            f'{found.metric} of the last checkpoint; {spread} {seeds}. eps and norm '
            "are those of the backbone's pre-training. fixed: the backbone stays as it "
            'is, in eval mode; full: it learns with the rest.',
            '![eps against the figure](transfer.png)' if self.rows else None,
        ]
        more = ['## By learning rate', self._by_lr()] if len(sweep.lrs) > 1 else []
        more += [
            '## Checkpoints',
            markdown_table(['eps', 'file', 'sha256'], files, 'rl'),
        ]
        title, checks = 'Transfer of robust backbones', self.notes()
        return markdown(title, missing, blocks, checks, facts, more)

    def write(self) -> None:
        """Writes ``transfer.json``, ``.md`` and ``.png``, on the main process."""
        if is_main_process():
            sweep, rows, picture = self.sweep, self.rows, None
            if rows:
                picture = figure(rows, self.found.metric, sweep.norm, len(sweep.seeds))
            text = self.markdown()
            write_report(sweep.work_dir, 'transfer', self.as_dict(), text, picture)

    @property
    def _digits(self) -> int:
        """Mmpretrain's accuracies are in percent, mmdet's AP in [0, 1]."""
        return 2 if any(abs(row['mean'] or 0) > 1 for row in self.rows) else 4

    def _cell(self, row: Mapping[str, Any], best: float | None) -> str:
        if row['mean'] is None:
            return '-'
        digits = self._digits
        text = f'{row["mean"]:.{digits}f}'
        text = f'**{text}**' if row['mean'] == best else text
        if row['std'] is not None:
            text += f' ± {row["std"]:.{digits}f}'
        if row['n'] < len(self.sweep.seeds):
            text += f' ({row["n"]} of {len(self.sweep.seeds)} seeds)'
        return text

    def _by_lr(self) -> str:
        chosen_by = 'chosen by'
        if self.found.selection:
            chosen_by = f'{self.found.selection} (validation)'
        lines = []
        for row in self.rows:
            for entry in row['by_lr']:
                score, lr = entry['selected_by'], entry['lr']
                line = [short(row['eps']), row['mode'], short(lr)]
                line.append(self._cell(entry, None))
                line.append('-' if score is None else f'{score:.{self._digits}f}')
                lines.append([*line, 'yes' if lr == row['lr'] else ''])
        head = ['eps', 'mode', 'lr', self.found.metric, chosen_by, 'chosen']
        return markdown_table(head, lines, 'rlrrrl')


def figure(
    rows: Sequence[Mapping[str, Any]], metric: str, norm: str, num_seeds: int
) -> Figure:
    """Draws one line per mode with error bars over the seeds.

    The eps axis is linear between 0 and the smallest other eps and logarithmic above,
    so that the standard backbone (eps 0) is on it.

    Args:
        rows: see :func:`summarize`.
        metric: name of the figure.
        norm: norm of the pre-training's eps.
        num_seeds: seeds of the study.
    """
    drawn = new_figure(6.0, 4.0)
    axes = drawn.add_subplot()
    for mode in MODES:
        points = [r for r in rows if r['mode'] == mode and r['mean'] is not None]
        if points:
            marker, line = _STYLES[mode]
            axes.errorbar(
                [row['eps'] for row in points],
                [row['mean'] for row in points],
                yerr=[row['std'] or 0.0 for row in points] if num_seeds > 1 else None,
                marker=marker,
                linestyle=line,
                capsize=3,
                label=mode,
            )
    ticks = sorted({row['eps'] for row in rows})
    positive = [eps for eps in ticks if eps > 0]
    if positive:
        axes.set_xscale('symlog', linthresh=positive[0], linscale=0.5)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([short(eps) for eps in ticks])
    axes.set_xlabel(f'eps of the pre-training ({norm})')
    axes.set_ylabel(metric)
    if num_seeds > 1:
        axes.set_title(f'mean and standard deviation of {num_seeds} seeds', fontsize=10)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return drawn
