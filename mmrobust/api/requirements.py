"""Requirements on the figures of a report, for a gate in continuous integration."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..report import figure_of, worst_figure
from ..utils.validation import did_you_mean
from .report import BENIGN, WORST, Report

_FORM = re.compile(r'([^<>=:\s]+)(?::([^<>=\s]+))?\s*([<>]=)\s*(\S+)')


@dataclass(frozen=True)
class Requirement:
    """What one figure has to be.

    Args:
        name: of an attack in the report, ``'benign'``, or ``'worst'`` for the worst
            case over all passes.
        relation: ``'>='`` or ``'<='``.
        bound: what the figure is compared with, in its own unit.
        metric: of the evaluator, like ``'coco/bbox_mAP_50'``; None for the figure that
            the report compares passes by: the mAP of boxes or of masks, panoptic
            quality, or the evaluator's own.
    """

    name: str
    relation: str
    bound: float
    metric: str | None = None

    @classmethod
    def read(cls, text: str) -> Requirement:
        """Reads text like ``'ensemble>=0.25'`` or ``'pgd:coco/bbox_mAP_50>=0.5'``.

        Raises:
            ConfigError: for anything else.
        """
        found = _FORM.fullmatch(text.strip())
        try:
            if found:
                name, metric, relation, bound = found.groups()
                if math.isfinite(float(bound)):
                    return cls(name, relation, float(bound), metric)
        except ValueError:
            pass
        raise ConfigError(
            f'requirement {text!r} cannot be read: write an attack, >= or <=, and a '
            "number, like 'ensemble>=0.25'; 'benign' and 'worst' are names, too."
        )

    def check_name(self, attacks: Sequence[str]) -> None:
        """Makes sure that a report of these attacks will have the figure.

        Raises:
            ConfigError: if it will not.
        """
        names = [*attacks, BENIGN, *([WORST] if len(attacks) > 1 else [])]
        if self.name not in names:
            raise ConfigError(
                f'requirement on {self.name!r}: there is no such pass'
                f'{did_you_mean(self.name, names)}, choose from {", ".join(names)}.'
            )

    def missed(self, report: Report) -> str | None:
        """Says in a sentence that a report does not meet it; None if it does.

        A figure that is missing or not finite does not.

        Raises:
            ConfigError: if the evaluator has no such metric.
        """
        self.check_name(list(report.attacks))
        value = self._value(report)
        what = f'{self.name}{":" + self.metric if self.metric else ""}'
        if self.name == WORST and _by_boxes(report):
            what += " by COCO's mAP of boxes"
        if value is None:
            return f'{what} has no figure'
        met = value >= self.bound if self.relation == '>=' else value <= self.bound
        if met:
            return None
        return f'{what} is {value:.4g}, and {self.relation} {self.bound:g} was required'

    def _value(self, report: Report) -> float | None:
        if self.name == WORST:
            key = 'worst_case_boxes' if _by_boxes(report) else 'worst_case'
            figure = worst_figure(report.content.get(key))
            return None if figure is None else figure.value
        metrics, boxes = report.figures_of(self.name)
        if self.metric is None:
            figure = figure_of(metrics, boxes)
        elif self.metric in metrics:
            figure = figure_of({self.metric: metrics[self.metric]}, key=self.metric)
        else:
            raise ConfigError(
                f'the evaluator has no metric {self.metric!r}'
                f'{did_you_mean(self.metric, list(metrics))}: choose from '
                f'{", ".join(metrics)}.'
            )
        return None if figure is None else figure.value


def _by_boxes(report: Report) -> bool:
    """Whether boxes have to stand for an evaluator's figure without a worst case."""
    return report.judged_by == 'evaluator' and not report.content.get('worst_case')


def check(report: Report, requirements: Sequence[Requirement]) -> list[str]:
    """Returns a sentence for each requirement that a report does not meet."""
    found = (each.missed(report) for each in requirements)
    return [sentence for sentence in found if sentence]
