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
    """A figure in the unit of its metric and, if it was resampled, its interval.

    Attributes:
        value: the figure.
        low: lower end of the interval.
        high: upper end.
        percent: the unit is percent; other figures are shares of 1.
    """

    value: float
    low: float | None = None
    high: float | None = None
    percent: bool = False

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
        values = values or {}
        return cls.of(*(values.get(key) for key in ('estimate', 'low', 'high')))

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
    """A bar of the page's chart of figures.

    Attributes:
        label: the attack's name.
        figure: its length.
        kind: ``'benign'``, ``'attack'`` or ``'worst'``.
    """

    label: str
    figure: Figure
    kind: str = 'attack'


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


# A paragraph (in which ``**`` and backticks mean what they mean in Markdown), a list of
# points, or a table.
Part: TypeAlias = 'str | list[str] | Table'


@dataclass(frozen=True)
class Shares:
    """A drawing for the page: how a total divides, a bar of parts for each row.

    Attributes:
        title: says what is divided.
        rows: a label and the counts of the parts by name, the same names in each row.
    """

    title: str
    rows: Sequence[tuple[str, Mapping[str, int]]]


@dataclass(frozen=True)
class Lines:
    """A drawing for the page: figures against eps, steps or queries.

    Attributes:
        title: describes the picture.
        unit: label of the horizontal axis.
        name: label of the vertical axis.
        lines: a label and the points of each line, by rising value.
        level: a figure that is drawn as a level line, labelled ``benign``.
        factors: the values on the horizontal axis grow by factors.
    """

    title: str
    unit: str
    name: str
    lines: Sequence[tuple[str, Sequence[tuple[float, Figure]]]]
    level: Figure | None = None
    factors: bool = False


@dataclass(frozen=True)
class Section:
    """A titled part of the report.

    Attributes:
        key: names the section in the page.
        title: its heading.
        parts: paragraphs, lists and tables.
        drawings: pictures that the page has above the parts.
        page_only: the section is too long for the Markdown.
    """

    key: str
    title: str
    parts: list[Part] = field(default_factory=list)
    drawings: Sequence[Shares | Lines] = ()
    page_only: bool = False


@dataclass(frozen=True)
class Document:
    """A report ready to be written as Markdown or as a page.

    Attributes:
        title: heading of the page.
        facts: names of model and data, in the head of the page.
        figure: name of the figure that the bars show.
        bars: figures that the page draws.
        parts: the table of figures and what there is to say about it.
        sections: all others, in the order of the Markdown; the page has ``'checks'`` in
            front and ``'repeat'`` at the end.
        warnings: the sentences of the section ``'checks'``, if there are any.
        config_text: the full config, for the end of the page.
        complete: all attacks have been run.
    """

    title: str
    facts: Mapping[str, str]
    figure: str
    bars: Sequence[Bar]
    parts: Sequence[Part]
    sections: Sequence[Section]
    warnings: Sequence[str]
    config_text: str
    complete: bool


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
