"""A leaderboard: the reports of a folder in sortable tables, on one static page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..report import (
    AttackResult,
    Document,
    Figure,
    Part,
    Section,
    Table,
    figure_of,
    number,
    page,
)
from ..utils.files import file_sha256
from .report import BENIGN, Report, load
from .verification import NAME

_HEAD = ('detector', 'benign', 'left', 'interval', 'share', 'backwards', 'checks')
_DATA = ('type', 'ann_file', 'num_images', 'annotations_sha256')


def find_reports(folder: Path) -> tuple[dict[str, Report], list[str]]:
    """Returns the complete reports below a folder, by their own folders' names.

    Returns:
        The reports, and sentences on those that were left out.

    Raises:
        ConfigError: if there are none.
    """
    found, notes = {}, []
    for path in sorted(folder.rglob('*.json')):
        try:
            report = load(path)
        except ConfigError as error:
            if path.name == 'robustness.json':
                notes.append(str(error))
            continue
        own = path.parent if path.stem == 'robustness' else path.with_suffix('')
        found[own.relative_to(folder).as_posix()] = report
    if not found:
        raise ConfigError(f'there is no complete robustness report below {folder}.')
    return found, notes


def leaderboard(folder: Path, title: str = 'Leaderboard') -> str:
    """Returns the page: a table for each attack on each set of images.

    Only figures that can be compared are in one table: of the same data, number of
    images and frame, under attacks of the same name and settings.

    Args:
        folder: with reports in folders of their own, whose names are the detectors'.
        title: of the page.
    """
    reports, notes = find_reports(folder)
    groups: dict[tuple[str, ...], dict[str, tuple[Report, AttackResult]]] = {}
    for name, report in reports.items():
        for result in report.results():
            group = _group(report, result)
            groups.setdefault(group, {})[name] = report, result
    sections = [
        Section(f'table{place}', f'{group[0]}, {group[1]}', _parts(group, rows))
        for place, (group, rows) in enumerate(sorted(groups.items()))
    ]
    paths = [f'{name}: {each.path.name}' for name, each in reports.items()]
    sections += [
        Section('checks', 'Left out', [notes or 'Nothing was left out.']),
        Section('repeat', 'Reports', [paths]),
    ]
    document = Document(
        title=title,
        facts={'reports': str(len(reports))},
        figure='mAP',
        bars=(),
        parts=['A click or Enter on the title of a column sorts by it.'],
        sections=sections,
        warnings=notes,
        config_text='',
        complete=True,
    )
    return page(document, sortable=True)


def _group(report: Report, result: AttackResult) -> tuple[str, ...]:
    """Says what figures have to have in common to be compared."""
    told = {k: v for k, v in result.settings.items() if k != 'members'}
    ball = f'{result.name} ({told.get("norm")}, eps {told.get("eps", 0):g})'
    if result.members:
        told = {key: told.get(key) for key in ('norm', 'eps', 'objective')}
    data = report.content.get('dataset', {})
    about = [data.get(key) for key in _DATA]
    images = f'{data.get("num_images")} images of {data.get("ann_file") or about[0]}'
    rest = [about, report.content.get('space', 'input'), report.figure, told]
    return ball, images, json.dumps(rest, sort_keys=True, default=str)


def _parts(
    group: tuple[str, ...], rows: dict[str, tuple[Report, AttackResult]]
) -> list[Part]:
    *_, figure, settings = json.loads(group[2])
    told = [f'{k} {v}' for k, v in settings.items() if v not in (None, False)]
    text = f'{figure}. {", ".join(told)}'
    table = sorted((_row(name, *row) for name, row in rows.items()), key=_strongest)
    return [text, Table((*_HEAD, 'verified'), [cells for _, cells in table])]


def _strongest(row: tuple[float, Sequence[str]]) -> float:
    return -row[0]


def _row(name: str, report: Report, result: AttackResult) -> tuple[float, list[str]]:
    benign = figure_of(*report.figures_of(BENIGN))
    left = figure_of(result.metrics, result.judged)
    value = left.value if left else float('-inf')
    share = left.value / benign.value if left and benign and benign.value else None
    doubts = len(report.content['checks']) + len(result.checks)
    cells = [
        name,
        number(benign and benign.value),
        number(left and left.value),
        _interval(left),
        f'{share:.0%}' if share is not None else '-',
        number((result.per_image() or {}).get('backwards'), 0),
        f'{doubts} warnings' if doubts else 'none',
        _verified(report, result),
    ]
    return value, cells


def _interval(figure: Figure | None) -> str:
    if figure is None or figure.low is None or figure.high is None:
        return '-'
    return f'{number(figure.low)} to {number(figure.high)}'


def _verified(report: Report, result: AttackResult) -> str:
    """Says what the verification beside a report found, if it is of this report."""
    path = report.path.parent / NAME
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content['report_sha256'] != file_sha256(str(report.path)):
            return 'of another report'
        found = next(p for p in content['passes'] if p['name'] == result.name)
    except (OSError, ValueError, KeyError, StopIteration):
        return '-'
    count = len(content['image_ids'])
    holds = found['found'] >= found['claimed'] - content['tolerance']
    words = 'holds' if holds else 'overstated'
    return f'{words} on {count}: {number(found["found"])} of {number(found["claimed"])}'
