"""Compares reports of several detectors on the same images, under the same attacks."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analysis import MatchTable, difference_interval, read_tables
from ..errors import ConfigError
from ..report import (
    AttackResult,
    Document,
    Figure,
    Lines,
    Part,
    Section,
    Table,
    figure_of,
    find_curves,
    markdown,
    number,
    page,
    worst_figure,
)
from ..utils.files import write_atomically
from .report import BENIGN, WORST, Report

# What reports have to agree in to be compared: of the dataset, and of an attack all but
# its results. Of an ensemble the version says what it is, whose members depend on the
# detector.
_DATA = ('type', 'ann_file', 'num_images')
_OF_ENSEMBLE = ('norm', 'eps', 'objective')
FORMATS = ('md', 'html', 'csv', 'tex')


@dataclass(frozen=True)
class Row:
    """A pass of several reports.

    Attributes:
        name: of the pass.
        figures: of each report; None where it has none.
        drops: how far each is below the report's benign figure.
        differences: of each report's figure from the first one's, with its 95 %
            interval over images where detections were kept; None for the first.
        backwards: backward passes per image, of each report.
    """

    name: str
    figures: tuple[Figure | None, ...]
    drops: tuple[float | None, ...]
    differences: tuple[Figure | None, ...]
    backwards: tuple[float | None, ...]


class Comparison:
    """Lays reports beside each other.

    Args:
        reports: at least two, by the names of their columns.

    Attributes:
        rows: the benign pass, each attack that all of them have, and the worst case.
        notes: what was left out, and why.

    Raises:
        ConfigError: if data, images, frame, or the settings of an attack differ.
    """

    def __init__(self, reports: Mapping[str, Report]) -> None:
        if len(reports) < 2:
            raise ConfigError('there is nothing to compare: give at least two reports.')
        self.reports = dict(reports)
        self.notes: list[str] = []
        _check_data(self.reports)
        self._tables = self._read_tables()
        names = self._common()
        self.rows = [self._row(name) for name in (BENIGN, *names)]
        self.rows += self._worst()

    def _common(self) -> list[str]:
        """Returns the attacks that all reports have, with equal settings."""
        first, *others = self.reports.values()
        common = [n for n in first.attacks if all(n in each.attacks for each in others)]
        for column, report in self.reports.items():
            left = [name for name in report.attacks if name not in common]
            if left:
                self.notes.append(f'only in {column}: {", ".join(left)}')
        if not common:
            raise ConfigError('the reports have no attack in common.')
        for name in common:
            _check_settings({c: _named(r, name) for c, r in self.reports.items()})
        return common

    def _read_tables(self) -> dict[str, dict[str, MatchTable]]:
        found = {}
        for column, report in self.reports.items():
            path = report.path.with_suffix('.npz')
            if not path.is_file():
                self.notes.append(
                    f'{path.name} is not beside the report of {column}, so that '
                    'differences have no intervals'
                )
                return {}
            found[column] = read_tables(path)
        return found

    def _row(self, name: str) -> Row:
        figures = [figure_of(*each.figures_of(name)) for each in self.reports.values()]
        benign = [figure_of(*each.figures_of(BENIGN)) for each in self.reports.values()]
        entries = [each.attacks.get(name, {}) for each in self.reports.values()]
        costs = [entry.get('cost', {}).get('per_image') or {} for entry in entries]
        backwards = [cost.get('backwards') for cost in costs]
        return self._made(name, figures, benign, backwards)

    def _worst(self) -> list[Row]:
        """Returns the row of the worst case, if all reports have passes in common."""
        reports = list(self.reports.values())
        passes = [set(each.attacks) for each in reports]
        cases = [each.content.get('worst_case') or {} for each in reports]
        if not all(cases) or any(names != passes[0] for names in passes):
            return []
        figures = [worst_figure(case) for case in cases]
        benign = [figure_of(*each.figures_of(BENIGN)) for each in reports]
        return [self._made(WORST, figures, benign, [None] * len(reports))]

    def _made(
        self,
        name: str,
        figures: Sequence[Figure | None],
        benign: Sequence[Figure | None],
        backwards: Sequence[float | None],
    ) -> Row:
        pairs = zip(benign, figures, strict=True)
        return Row(
            name,
            tuple(figures),
            tuple(a.value - b.value if a and b else None for a, b in pairs),
            tuple(self._difference(name, at, figures) for at in range(len(figures))),
            tuple(backwards),
        )

    def _difference(
        self, name: str, place: int, figures: Sequence[Figure | None]
    ) -> Figure | None:
        first, own = figures[0], figures[place]
        if place == 0 or first is None or own is None:
            return None
        columns = list(self.reports)
        tables = [self._tables.get(columns[at], {}).get(name) for at in (0, place)]
        if tables[0] is None or tables[1] is None or own.low is None:
            return Figure(own.value - first.value)
        # Both lose the same images.
        found = difference_interval(tables[1], tables[0])
        return Figure.of(found.estimate, found.low, found.high)

    # ------------------------------------------------------------------ as documents

    def document(self) -> Document:
        """Returns the comparison for people."""
        columns = list(self.reports)
        first = next(iter(self.reports.values()))
        figure = first.figure_name
        parts: list[Part] = [self._table(), *self._sentences()]
        sections = [
            Section('differences', 'Differences', [self._differences()]),
            Section('drops', f'Fall of {figure} from the benign one', [self._drops()]),
            Section('cost', 'Backward passes per image', [self._costs()]),
            Section('checks', 'Checks', [self._warnings() or 'No warnings.']),
            Section('repeat', 'The reports', [self._sources()]),
        ]
        curves = self._curves(figure)
        if curves:
            sections.insert(0, Section('curves', 'Curves', [], curves, page_only=True))
        data = first.content['dataset']
        return Document(
            title=' and '.join(columns) if len(columns) == 2 else 'Comparison',
            facts={
                'dataset': str(data.get('ann_file') or data.get('type')),
                'images': str(data.get('num_images')),
                'figure': first.figure,
            },
            figure=figure,
            bars=(),
            parts=parts,
            sections=sections,
            warnings=self._warnings(),
            config_text='',
            complete=True,
        )

    def write(self, folder: Path) -> list[Path]:
        """Writes the comparison as Markdown, page, CSV and LaTeX into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        document = self.document()
        contents = (markdown(document), page(document), self.csv(), self.latex())
        paths = [folder / f'comparison.{kind}' for kind in FORMATS]
        for path, content in zip(paths, contents, strict=True):
            write_atomically(path, content)
        return paths

    def csv(self) -> str:
        """Returns a line for each pass and report, with all figures."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        head = ('pass', 'report', 'figure', 'low', 'high', 'fall', 'difference')
        writer.writerow((*head, 'difference_low', 'difference_high', 'backwards'))
        for row in self.rows:
            for place, column in enumerate(self.reports):
                own, other = map(_values, (row.figures[place], row.differences[place]))
                fall, last = row.drops[place], row.backwards[place]
                writer.writerow((row.name, column, *own, fall, *other, last))
        return text.getvalue()

    def latex(self) -> str:
        """Returns the table of figures for a paper, with booktabs' rules."""
        columns = [_latex(column) for column in self.reports]
        lines = [
            rf'\begin{{tabular}}{{l{"r" * len(columns)}}}',
            r'\toprule',
            ' & '.join(['', *columns]) + r' \\',
            r'\midrule',
        ]
        for row in self.rows:
            cells = [number(each and each.value) for each in row.figures]
            lines.append(' & '.join([_latex(row.name), *cells]) + r' \\')
        return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])

    def _table(self) -> Table:
        rows = [
            [row.name, *(each.text() if each else '-' for each in row.figures)]
            for row in self.rows
        ]
        return Table(('pass', *self.reports), rows)

    def _differences(self) -> Table:
        first, *others = self.reports
        head = ('pass', *(f'{column} - {first}' for column in others))
        rows = [
            [row.name, *(_signed(each) for each in row.differences[1:])]
            for row in self.rows
        ]
        return Table(head, rows)

    def _drops(self) -> Table:
        rows = [[r.name, *(number(each) for each in r.drops)] for r in self.rows[1:]]
        return Table(('pass', *self.reports), rows)

    def _costs(self) -> Table:
        rows = [
            [row.name, *(number(each, 1) for each in row.backwards)]
            for row in self.rows[1:]
            if any(each is not None for each in row.backwards)
        ]
        return Table(('pass', *self.reports), rows)

    def _sentences(self) -> list[Part]:
        """Says what the differences show, by their intervals."""
        first, *others = self.reports
        found = []
        for place, column in enumerate(others, 1):
            for row in self.rows:
                other = row.differences[place]
                if other is None or other.low is None or other.high is None:
                    continue
                if other.low <= 0 <= other.high:
                    verdict = 'may be chance: the interval holds 0'
                else:
                    verdict = 'is more than the choice of images explains'
                size = number(abs(other.value))
                side = 'above' if other.value >= 0 else 'below'
                found.append(
                    f'{row.name}: {column} is {size} {side} {first}, which {verdict}.'
                )
        return [found] if found else []

    def _warnings(self) -> list[str]:
        found = list(self.notes)
        for column, report in self.reports.items():
            found += [f'{column}: {text}' for text in report.checks]
        seeds = {report.content.get('seed') for report in self.reports.values()}
        if len(seeds) > 1:
            found.append('the reports have different seeds')
        return found

    def _sources(self) -> list[str]:
        return [
            f'{column}: {report.path}, checkpoint sha256 '
            f'{report.content.get("checkpoint_sha256") or "unknown"}'
            for column, report in self.reports.items()
        ]

    def _curves(self, figure: str) -> list[Lines]:
        """Draws the curves that all reports have, in a picture for each attack."""
        found: dict[tuple[str, str, str], list[tuple[str, Any]]] = {}
        for column, report in self.reports.items():
            for curve in find_curves(report.results()):
                places = [(x, figure_of(p.metrics, p.judged)) for x, p in curve.points]
                known = [(x, each) for x, each in places if each]
                key = curve.label, curve.axis, curve.norm
                found.setdefault(key, []).append((column, known))
        return [
            Lines(label, f'{axis} ({norm})' if axis == 'eps' else axis, figure, lines)
            for (label, axis, norm), lines in found.items()
            if len(lines) == len(self.reports)
        ]


def _check_data(reports: Mapping[str, Report]) -> None:
    for key in _DATA:
        _agree(
            f'{key} of the dataset',
            {c: r.content.get('dataset', {}).get(key) for c, r in reports.items()},
        )
    chosen = {
        column: str(found)[:12]
        for column, report in reports.items()
        if (found := report.content.get('dataset', {}).get('annotations_sha256'))
    }
    if len(chosen) > 1:
        _agree('the hash of the evaluated images and their objects', chosen)
    _agree('judged_by', {c: r.judged_by for c, r in reports.items()})
    _agree('figure', {c: r.figure for c, r in reports.items()})
    _agree('space', {c: r.content.get('space', 'input') for c, r in reports.items()})


def _named(report: Report, name: str) -> AttackResult:
    return next(each for each in report.results() if each.name == name)


def _check_settings(results: Mapping[str, AttackResult]) -> None:
    ensemble = any(each.members for each in results.values())
    for key in sorted({key for each in results.values() for key in each.settings}):
        if not ensemble or key in _OF_ENSEMBLE:
            values = {column: r.settings.get(key) for column, r in results.items()}
            what = 'version' if ensemble and key == 'objective' else key
            name = next(iter(results.values())).name
            _agree(f'{what} of {name}', values)


def _agree(what: str, values: Mapping[str, Any]) -> None:
    """Makes sure that reports agree.

    Raises:
        ConfigError: naming in what they do not.
    """
    (column, first), *others = values.items()
    for other, value in others:
        same = value == first or (
            isinstance(value, float)
            and isinstance(first, (int, float))
            and math.isclose(value, first)
        )
        if not same:
            raise ConfigError(
                f'{column} and {other} cannot be compared: {what} is {first} in the '
                f'one and {value} in the other.'
            )


def _values(figure: Figure | None) -> tuple[float | None, ...]:
    return (None,) * 3 if figure is None else (figure.value, figure.low, figure.high)


def _signed(figure: Figure | None) -> str:
    if figure is None:
        return '-'
    text = number(figure.value, signed=True)
    if figure.low is None or figure.high is None:
        return text
    ends = (number(end, signed=True) for end in (figure.low, figure.high))
    return f'{text} [{", ".join(ends)}]'


def _latex(text: str) -> str:
    for character in '&%$#_{}':
        text = text.replace(character, '\\' + character)
    return text
