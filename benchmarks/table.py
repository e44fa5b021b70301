"""Figures as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# How figures are written, by key of a row.
FORMATS = {
    'milliseconds': '.1f',
    'images_per_second': '.2f',
    'ratio': '.3f',
    'ratio_to_passes': '.3f',
    'mebibytes': '.1f',
}


@dataclass
class Table:
    """Rows of figures with a title.

    Attributes:
        title: what was measured.
        columns: headers by key of a row, in their order; a row lacks what does not
            apply to it.
        rows: the figures. ``passed``, where a row has it, says whether it kept its
            limit.
        notes: sentences below the table.
    """

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """What did not keep its limit."""
        return [row['what'] for row in self.rows if row.get('passed') is False]

    def markdown(self) -> str:
        """The table in Markdown."""
        right = ['---:' if key in FORMATS else '---' for key in self.columns]
        lines = [f'**{self.title}**', '']
        lines += [_line(self.columns.values()), _line(right)]
        lines += [_line(_cell(row, key) for key in self.columns) for row in self.rows]
        return '\n'.join([*lines, *(f'\n{note}' for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """The table for JSON."""
        return {'title': self.title, 'rows': self.rows, 'notes': self.notes}


def as_markdown(facts: Sequence[str], tables: Sequence[Table]) -> str:
    """Facts about the run, then its tables."""
    return '\n\n'.join(['  \n'.join(facts), *(table.markdown() for table in tables)])


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return '' if value is None else format(value, FORMATS.get(key, ''))


def _line(cells: Any) -> str:
    return f'| {" | ".join(cells)} |'
