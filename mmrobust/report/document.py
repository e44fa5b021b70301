"""Sections, paragraphs and tables: what the Markdown and the page have in common.

A part of a section is a paragraph (text), a list of points (a list of texts) or a
:class:`Table`. Numbers become text once, here, so that both say the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

MISSING = '-'


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        head: titles of the columns.
        rows: as many cells each.
        texts: how many columns on the left hold text; the others hold numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(self.head, self.rows, 'l' * self.texts + 'r')


Part: TypeAlias = 'str | list[str] | Table'


@dataclass(frozen=True)
class Section:
    """A titled part of the report.

    Attributes:
        key: names the section in the page.
        title: its heading.
        parts: paragraphs, lists and tables. ``**`` and backticks in paragraphs mean
            what they mean in Markdown.
    """

    key: str
    title: str
    parts: list[Part] = field(default_factory=list)

    def markdown(self) -> str:
        """The section in Markdown."""
        return f'## {self.title}\n\n' + '\n\n'.join(map(part_markdown, self.parts))


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], align: str = 'lr'
) -> str:
    """Formats a table in Markdown, without a newline at its end.

    Args:
        head: titles of the columns.
        rows: as many cells each; bars and newlines in them are escaped.
        align: ``'l'`` or ``'r'`` for each column; the last letter holds for the
            columns that are left, so that ``'lr'`` is text and then numbers.
    """
    sides = align.ljust(len(head), align[-1])[: len(head)]
    rule = ['---:' if side == 'r' else '---' for side in sides]
    lines = [list(map(_cell, head)), rule]
    lines += [list(map(_cell, row)) for row in rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def part_markdown(part: Part) -> str:
    """A part of a section in Markdown."""
    if isinstance(part, Table):
        return part.markdown()
    if isinstance(part, list):
        return '\n'.join(f'- {text}' for text in part)
    return part


def number(value: Any, digits: int = 3, signed: bool = False) -> str:
    """A figure as text, or a dash if there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return MISSING
    if not math.isfinite(value):
        return MISSING
    return f'{value:{"+" if signed else ""}.{digits}f}'


def interval(values: Mapping[str, Any] | None) -> str:
    """Like ``0.412 [0.380, 0.450]``."""
    if values is None or number(values['estimate']) == MISSING:
        return MISSING
    low, high = number(values['low']), number(values['high'])
    return f'{values["estimate"]:.3f} [{low}, {high}]'


def _cell(content: object) -> str:
    return str(content).replace('|', r'\|').replace('\n', ' ')
