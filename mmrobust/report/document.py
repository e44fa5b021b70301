"""The parts that the written report is made of: tables, sections, bars and lines.

Figures become text here, once, so that the Markdown and the page say the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

MISSING = '-'


@dataclass(frozen=True)
class Figure:
    """A figure in the unit of its metric and, if it was resampled, its interval."""

    value: float
    low: float | None = None
    high: float | None = None
    percent: bool = False  # other figures are shares of 1

    @classmethod
    def of(cls, value: Any, low: Any = None, high: Any = None) -> Figure | None:
        """Returns the figure, or None if the value is no finite number."""
        if not is_number(value):
            return None
        ends = is_number(low) and is_number(high)
        return cls(value, low, high) if ends else cls(value)

    @classmethod
    def resampled(cls, values: Mapping[str, Any] | None) -> Figure | None:
        """Returns the figure of ``estimate``, ``low`` and ``high``, if there is one."""
        return cls.of(*map((values or {}).get, ('estimate', 'low', 'high')))

    @property
    def share(self) -> float:
        """The value as a share of 1."""
        return self.value / 100 if self.percent else self.value

    def text(self, digits: int = 3) -> str:
        """Returns text like ``0.412 [0.380, 0.450]``."""
        text = number(self.value, digits)
        if self.low is None or self.high is None:
            return text
        return f'{text} [{number(self.low, digits)}, {number(self.high, digits)}]'


@dataclass(frozen=True)
class Bar:
    """A bar of the page's chart of figures."""

    label: str
    figure: Figure
    kind: str = 'attack'  # or 'benign' or 'worst'


@dataclass(frozen=True)
class Table:
    """A table of texts, with as many cells in each row as titles in the head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1  # columns on the left that hold text; the others hold numbers


# A paragraph (in which ``**`` and backticks mean what they mean in Markdown), a list of
# points, or a table.
Part: TypeAlias = 'str | list[str] | Table'


@dataclass(frozen=True)
class Shares:
    """A drawing for the page: how a total divides, a bar of parts for each row."""

    title: str
    rows: Sequence[tuple[str, Mapping[str, int]]]  # a label, and counts by name


@dataclass(frozen=True)
class Lines:
    """A drawing for the page: figures against eps, steps or queries."""

    title: str
    unit: str  # label of the horizontal axis
    name: str  # label of the vertical axis
    lines: Sequence[tuple[str, Sequence[tuple[float, Figure]]]]  # by rising value
    level: Figure | None = None  # a level line, labelled 'benign'
    factors: bool = False  # the values on the horizontal axis grow by factors


@dataclass(frozen=True)
class Section:
    """A titled part of the report; its key names it in the page."""

    key: str
    title: str
    parts: list[Part] = field(default_factory=list)
    drawings: Sequence[Shares | Lines] = ()  # above the parts, in the page only
    page_only: bool = False  # too long for the Markdown


@dataclass(frozen=True)
class Document:
    """A report ready to be written as Markdown or as a page.

    The sections are in the order of the Markdown; the page has ``'checks'`` in front
    and ``'repeat'`` at its end.
    """

    title: str
    facts: Mapping[str, str]  # about model and data, for the head of the page
    figure: str  # name of the figure that the bars show
    bars: Sequence[Bar]
    parts: Sequence[Part]  # the table of figures, and what there is to say about it
    sections: Sequence[Section]
    warnings: Sequence[str]  # the sentences of the section 'checks'
    config_text: str
    complete: bool  # all attacks have been run
    summary: str = ''  # what the figures come to, in a sentence or two


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number, numpy's included."""
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(float(value))
    )


def number(value: Any, digits: int = 3, signed: bool = False) -> str:
    """Returns a number as text, or a dash if there is none."""
    if not is_number(value):
        return MISSING
    return f'{value:{"+" if signed else ""}.{digits}f}'
