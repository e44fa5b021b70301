"""A finished robustness report, read from its file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..report import AttackResult, Headline, markdown_table
from .attacked import data_frame

# Names of what is no attack.
BENIGN, WORST = 'benign', 'worst'
# Of an attack, beside its metrics.
_SETTINGS = ('norm', 'eps', 'num_steps', 'objective')


class Report:
    """A robustness report, as an evaluation wrote it.

    Args:
        path: the JSON file.
        content: what it holds; docs/report.md has its schema.

    Attributes:
        path: the JSON file; its twins end with ``.md`` and ``.html``.
        content: what it holds.
    """

    def __init__(self, path: str | os.PathLike, content: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.content = dict(content)

    @property
    def benign(self) -> dict[str, Any]:
        """The metrics without attack."""
        return dict(self.content['benign'].get('metrics') or {})

    @property
    def attacks(self) -> dict[str, dict[str, Any]]:
        """The entry of each attack, by its name."""
        return {each['name']: each for each in self.content['attacks']}

    @property
    def checks(self) -> list[str]:
        """What makes figures doubtful, in sentences."""
        found = list(self.content['checks'])
        for name, each in self.attacks.items():
            found += [f'{name}: {text}' for text in each['checks']]
        return found

    def figures_of(self, name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Returns metrics of a pass, and the analysis by which passes are compared."""
        found = self.content['benign'] if name == BENIGN else self.attacks[name]
        return dict(found.get('metrics') or {}), found.get(self.judged_by)

    @property
    def judged_by(self) -> str:
        """What compares passes: boxes, masks, panoptic, or the evaluator's figure."""
        return str(self.content.get('judged_by', 'boxes'))

    @property
    def figure_name(self) -> str:
        """The name of the figure by which passes are compared."""
        metrics, found = self.figures_of(BENIGN)
        if found and self.judged_by in ('boxes', 'masks'):
            return f'COCO mAP of {self.judged_by}'
        return Headline(metrics, found, self.judged_by).name or 'figure'

    @property
    def figure(self) -> str:
        """Name and meaning of the figure by which passes are compared."""
        means = (self.figures_of(BENIGN)[1] or {}).get('means')
        return f'{self.figure_name}: {means}' if means else self.figure_name

    def results(self) -> list[AttackResult]:
        """Returns the entry of each attack, settings apart from results."""
        return [AttackResult.read(entry) for entry in self.content['attacks']]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each pass, the benign one first.

        Columns are the attack, its settings, all metrics under their own names, and
        ``mAP``, ``mAP_low`` and ``mAP_high``: the mAP by which passes are compared,
        COCO's of boxes mostly (see :attr:`figure`), with its 95 % interval.
        """
        passes = {BENIGN: {}, **self.attacks}
        return [
            _row(name, settings, *self.figures_of(name))
            for name, settings in passes.items()
        ]

    def table(self) -> str:
        """Returns the figures as a Markdown table."""
        rows = self.rows()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[_text(row.get(key)) for key in columns] for row in rows]
        return markdown_table(columns, cells)

    def to_pandas(self) -> Any:
        """Returns :meth:`rows` as a pandas ``DataFrame``.

        Raises:
            ConfigError: if pandas is not installed.
        """
        return data_frame(self.rows())

    def save(self, path: str | os.PathLike) -> None:
        """Copies the report, its tables of matches and its twins to another place.

        Args:
            path: of the new JSON file, beside which the others lie.

        Raises:
            ConfigError: if it is no JSON file.
        """
        target = Path(path)
        if target.suffix != '.json':
            raise ConfigError(f'{path} must be a .json file.')
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.resolve() == self.path.resolve():
            return
        for suffix in ('.json', '.npz', '.md', '.html'):
            if (source := self.path.with_suffix(suffix)).is_file():
                shutil.copyfile(source, target.with_suffix(suffix))

    def __repr__(self) -> str:
        return f'{self.path}\n{self.table()}'

    def _repr_html_(self) -> str:
        """Shows the figures in a notebook."""
        head, _, *body = self.table().splitlines()
        rows = [('th', head), *(('td', line) for line in body)]
        cells = [
            ''.join(f'<{kind}>{cell}</{kind}>' for cell in _cells(line))
            for kind, line in rows
        ]
        return f'<table>{"".join(f"<tr>{row}</tr>" for row in cells)}</table>'


def load(path: str | os.PathLike) -> Report:
    """Reads a report.

    >>> import mmrobust
    >>> report = mmrobust.load(report_path)
    >>> report.attacks['pgd']['eps']
    4.0

    Args:
        path: ``robustness.json`` of an evaluation, or the folder that it is in.

    Raises:
        ConfigError: if there is no report, or it is not complete.
    """
    found = Path(path)
    found = found / 'robustness.json' if found.is_dir() else found
    if not found.is_file():
        raise ConfigError(f'{found} does not exist: give the .json file of a report.')
    try:
        content = json.loads(found.read_text())
        complete = content['complete']
        dict(content['benign']), [each['name'] for each in content['attacks']]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{found} is no robustness report.') from error
    if not complete:
        raise ConfigError(
            f'{found} is of an evaluation that has not ended: run its command again, '
            'which goes on where it was.'
        )
    return Report(found, content)


def _row(
    name: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    boxes: Mapping[str, Any] | None,
) -> dict[str, Any]:
    row = {'attack': name, **{key: settings.get(key) for key in _SETTINGS}, **metrics}
    for name in ('mAP', 'PQ'):
        if interval := (boxes or {}).get(name):
            ends = {name: 'estimate', f'{name}_low': 'low', f'{name}_high': 'high'}
            row |= {key: interval[end] for key, end in ends.items()}
    return row


def _text(value: Any) -> str:
    if value is None:
        return ''
    return f'{value:.3f}' if isinstance(value, float) else str(value)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip('|').split('|')]
