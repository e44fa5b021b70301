"""The one figure by which passes are compared: bars, curves and gaps show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .document import interval, number

if TYPE_CHECKING:
    from .robustness import RobustnessReport

BENIGN_LABEL = 'none (benign)'

# The metrics that people look at first, in this order.
_SHOWN = (
    *('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'segm_mAP', 'PQ', 'mAP', 'AP50'),
    *('top1', 'top5'),
)


@dataclass(frozen=True)
class Figure:
    """A figure and, if it was resampled, the ends of its interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bar:
    """A bar of the chart.

    Attributes:
        label: the attack's name.
        figure: its length.
        kind: ``'benign'``, ``'attack'`` or ``'worst'``.
    """

    label: str
    figure: Figure
    kind: str = 'attack'


def shown_metrics(benign: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that tables show: all, if none of the usual is there."""
    usual = [key for key in benign if key.split('/')[-1] in _SHOWN]
    return usual or list(benign)


class Headline:
    """Reads the figure off the results.

    Args:
        benign: metrics of the benign pass, which decide what the figure is.
        boxes: analysis of the boxes of the benign pass; its mAP has an interval.

    Attributes:
        name: what the figure is, like ``'mAP'``.
    """

    def __init__(
        self, benign: Mapping[str, Any], boxes: Mapping[str, Any] | None
    ) -> None:
        keys = shown_metrics(benign)
        self.key = keys[0] if keys else ''
        self.name = 'mAP' if boxes else self.key.split('/')[-1]

    @classmethod
    def of(cls, report: RobustnessReport) -> Headline:
        """The headline of a report."""
        return cls(report.benign, report.benign_boxes)

    def read(
        self, metrics: Mapping[str, Any], boxes: Mapping[str, Any] | None
    ) -> Figure | None:
        """The figure of a pass, or None if it has none."""
        if boxes:
            values = boxes['mAP']
            return _figure(values['estimate'], values['low'], values['high'])
        return _figure(metrics.get(self.key))

    def text(self, metrics: Mapping[str, Any], boxes: Mapping[str, Any] | None) -> str:
        """The figure with its interval, if it has one."""
        if boxes:
            return interval(boxes['mAP'])
        return number(metrics.get(self.key))


def bars(report: RobustnessReport) -> list[Bar]:
    """The benign figure, one of each attack, and the worst case."""
    headline = Headline.of(report)
    found: list[tuple[str, Figure | None, str]] = [
        (BENIGN_LABEL, headline.read(report.benign, report.benign_boxes), 'benign')
    ]
    for attack in report.attacks:
        figure = headline.read(attack.metrics, attack.boxes)
        found.append((attack.name, figure, 'attack'))
    if report.worst_case:
        found.append(('worst case', _figure(report.worst_case['mAP']), 'worst'))
    return [Bar(label, each, kind) for label, each, kind in found if each]


def scale_of(chart: Sequence[Bar]) -> float:
    """The largest value in a chart, its right edge."""
    ends = [
        end
        for bar in chart
        for end in (bar.figure.value, bar.figure.high)
        if end is not None
    ]
    return max(ends, default=0.0) or 1.0


def _figure(value: Any, low: Any = None, high: Any = None) -> Figure | None:
    if not _is_number(value):
        return None
    ends = _is_number(low) and _is_number(high)
    return Figure(value, low, high) if ends else Figure(value)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )
