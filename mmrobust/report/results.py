"""The results of attacks, the figure that compares them, and curves.

A curve is what attacks that differ in one number only have in common: AP against eps,
steps or queries.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .document import Figure, is_number

# The metrics that people look at first; passes are compared by the first one there is.
_USUAL = (
    *('bbox_mAP', 'mAP', 'segm_mAP', 'PQ', 'AP50', 'bbox_mAP_50', 'bbox_mAP_75'),
    *('top1', 'top5'),
)
_PERCENT = ('PQ', 'top1', 'top5')
# What is read of predictions, and the figure that says how good it is.
ANALYSES = {'boxes': 'mAP', 'masks': 'mAP', 'panoptic': 'PQ'}
# Attributes of a result that are those of its attack.
_TOLD = ('asks', 'baseline', 'transferable')
_COUNTS = ('forwards', 'backwards', 'queries', 'seconds')


@dataclass
class AttackResult:
    """Metrics of one attack and what they cost."""

    name: str
    settings: dict[str, Any]  # as the attack's describe() gives them
    metrics: dict[str, Any] = field(default_factory=dict)  # as the evaluator gives them
    checks: list[str] = field(default_factory=list)  # what makes the figures doubtful
    forwards: int = 0  # images that went through the network for the attack
    backwards: int = 0
    seconds: float = 0.0  # of attacks and predictions, added up over images
    boxes: dict[str, Any] | None = None  # mAP with its interval, counts of errors
    masks: dict[str, Any] | None = None  # the same of masks
    panoptic: dict[str, Any] | None = None  # PQ in percent with its interval, SQ, RQ
    # Of the evaluator's own figure, if it has an interval: its name, what it means, and
    # mAP and drop as in boxes.
    evaluator: dict[str, Any] | None = None
    # By which passes are compared: one of ANALYSES, or 'evaluator'.
    judged_by: str = 'boxes'
    images: int = 0  # images that were attacked
    queries: int = 0  # forward passes of attacks that ask for the output only
    # The same attacked images rounded to 8 bits, stored as pictures and scored through
    # the unchanged pipeline: metrics, boxes (or None), what else is analysed, and
    # radius, the largest perturbation after rounding.
    quantized: dict[str, Any] | None = None
    # Of an ensemble only, in their order: name, settings, images (on how many it ran),
    # chosen (on how many it is the worst), mAP (after this member), and its costs.
    members: list[dict[str, Any]] | None = None
    watched: dict[str, Any] | None = None  # statistics of the gradients
    # Of an attack with patches: AP by the distance of objects from them, and false
    # detections on them, beside those of the benign pass.
    patches: dict[str, Any] | None = None
    # Of predicting on the attacked images, beside attacks that aim at it: means of
    # candidates, bound and detections, median seconds, and of how many images.
    load: dict[str, Any] | None = None
    # Of the attack: see :class:`mmrobust.attacks.Attack`.
    asks: str = 'gradients'
    baseline: bool = False
    transferable: bool = False
    base: str | None = None  # what points of a curve, like 'pgd-eps2', have in common

    @classmethod
    def of(cls, name: str, attack: Any, **fields: Any) -> AttackResult:
        """Starts the result of a :class:`mmrobust.attacks.Attack`."""
        flags = {key: getattr(attack, key) for key in _TOLD}
        return cls(name, attack.describe(), **flags, **fields)

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> AttackResult:
        """Reads the entry in the JSON file, which has no flags of baselines."""
        known = {each.name for each in fields(cls)} - {'settings'}
        settings = {k: v for k, v in entry.items() if k not in known | {'cost'}}
        cost = {k: v for k, v in entry.get('cost', {}).items() if k in known}
        given = {key: value for key, value in entry.items() if key in known}
        asks = 'values' if settings.get('gradient_free') else 'gradients'
        return cls(settings=settings, asks=asks, **{**given, **cost})

    @property
    def judged(self) -> dict[str, Any] | None:
        """Returns the analysis by which the pass is compared, if there is one."""
        found: dict[str, Any] | None = getattr(self, self.judged_by)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Returns the attack's entry in the JSON file."""
        extra = (
            *(*ANALYSES, 'evaluator', 'quantized'),
            *('members', 'watched', 'patches', 'load'),
        )
        costs = {key: round(getattr(self, key), 2) for key in _COUNTS}
        told = self.masks or self.judged_by != 'boxes'
        return {
            'name': self.name,
            **({'judged_by': self.judged_by} if told else {}),
            **self.settings,
            **({'base': self.base} if self.base else {}),
            'metrics': self.metrics,
            **{key: value for key in extra if (value := getattr(self, key))},
            'checks': self.checks,
            'cost': {'images': self.images, **costs, 'per_image': self.per_image()},
        }

    def per_image(self) -> dict[str, float] | None:
        """Returns the costs of one image, or None if images were not counted."""
        if not self.images:
            return None
        return {key: round(getattr(self, key) / self.images, 4) for key in _COUNTS}


# -------------------------------------------------------------- the compared figure


def shown_metrics(benign: Mapping[str, Any]) -> list[str]:
    """Returns the keys that tables show: all, if none of the usual is there."""
    return [key for key in benign if _end(key) in _USUAL] or list(benign)


def titles(keys: Sequence[str]) -> list[str]:
    """Returns the titles of metrics: without their prefix where that is clear.

    Several datasets have metrics of one name; and ``mAP`` alone is VOC's, of IoU 0.5,
    while the mAP of boxes is COCO's everywhere else in the report.
    """
    ends = [_end(key) for key in keys]
    return [
        key if end == 'mAP' or ends.count(end) > 1 else end
        for key, end in zip(keys, ends, strict=True)
    ]


def figure_of(
    metrics: Mapping[str, Any], boxes: Mapping[str, Any] | None = None, key: str = ''
) -> Figure | None:
    """Returns the figure by which a pass is compared, or None if it has none.

    Args:
        metrics: as the evaluator gives them.
        boxes: see :class:`AttackResult`, or masks, or the panoptic analysis; its figure
            comes first, since it has an interval.
        key: the metric to read, by default the first of the usual ones.
    """
    for name in ('mAP', 'PQ'):
        if found := Figure.resampled((boxes or {}).get(name)):
            return replace(found, percent=name in _PERCENT)
    key = key or _main_metric(metrics)
    found = Figure.of(metrics.get(key))
    return found and replace(found, percent=_end(key) in _PERCENT)


def has_own_figure(metrics: Mapping[str, Any]) -> bool:
    """Returns whether an evaluator's first figure is another one than COCO's mAP."""
    main = _end(_main_metric(metrics))
    return bool(main) and not main.startswith(('bbox_', 'segm_'))


def worst_figure(worst_case: Mapping[str, Any] | None) -> Figure | None:
    """Returns the figure of a worst case, or None if it has none."""
    worst = worst_case or {}
    key = 'PQ' if 'PQ' in worst else 'mAP'
    found = Figure.resampled(worst.get('interval')) or Figure.of(worst.get(key))
    return found and replace(found, percent=key in _PERCENT)


class Headline:
    """The figure by which the passes of one report are compared.

    Args:
        metrics: of the benign pass, which decide what the figure is.
        boxes: analysis of the benign pass by which passes are compared, if there is
            one.
        judged_by: see :class:`AttackResult`.
    """

    def __init__(
        self,
        metrics: Mapping[str, Any],
        boxes: Mapping[str, Any] | None,
        judged_by: str = 'boxes',
    ) -> None:
        self._key = _main_metric(metrics) or next(iter(metrics), '')
        wanted = {'masks': 'segm_mAP', 'panoptic': 'PQ'}.get(judged_by)
        self._key = next((k for k in metrics if _end(k) == wanted), self._key)
        self.name = titles([self._key])[0]
        if boxes and judged_by == 'masks':
            self.name = 'mask mAP'
        elif boxes and judged_by == 'panoptic':
            self.name = 'PQ'
        elif boxes and judged_by == 'boxes':
            others = [key for key in metrics if _end(key) == 'mAP']
            self.name = 'COCO mAP' if others else 'mAP'
        self.benign = self.read(metrics, boxes)
        self.percent = bool(self.benign and self.benign.percent)

    def of(self, attack: AttackResult) -> Figure | None:
        """Returns the figure of an attack, or None if it has none."""
        return self.read(attack.metrics, attack.judged)

    def read(
        self, metrics: Mapping[str, Any], boxes: Mapping[str, Any] | None
    ) -> Figure | None:
        """Returns the figure of a pass, or None if it has none."""
        return figure_of(metrics, boxes, self._key)


def _main_metric(metrics: Mapping[str, Any]) -> str:
    usual = [key for key in metrics if _end(key) in _USUAL and is_number(metrics[key])]
    return min(usual, key=lambda key: _USUAL.index(_end(key)), default='')


def _end(key: str) -> str:
    return key.split('/')[-1]


# -------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curve:
    """Attacks along an axis."""

    label: str  # what they have in common, like 'pgd, 10 steps'
    axis: str  # 'eps', 'steps' or 'queries'
    norm: str  # of the perturbations, for the unit of eps
    points: tuple[tuple[float, AttackResult], ...]  # by rising value on the axis


def agreed_settings(attack: AttackResult, axis: str, *free: str) -> dict[str, Any]:
    """Returns the settings in which attacks on one curve have to agree.

    The step size is left out, since it mostly derives from eps and the steps, and so is
    what only says the number on the axis once more.

    Args:
        attack: the attack.
        axis: ``'eps'`` or ``'num_steps'``.
        free: names of further settings that may differ.
    """
    left_out = {axis, *free, 'step_size', 'eps_unit', 'num_queries'}
    kept = {key: each for key, each in attack.settings.items() if key not in left_out}
    if attack.base:
        # One command varied eps or the steps, and nested settings derive from these.
        nested = (dict, list, tuple)
        kept = {key: each for key, each in kept.items() if not isinstance(each, nested)}
        return {**kept, 'base': attack.base}
    if kept.get('radius_schedule'):
        # Pairs of a radius and its share of the steps.
        kept['radius_schedule'] = [radius for radius, _ in kept['radius_schedule']]
    return kept


def find_curves(attacks: Sequence[AttackResult]) -> list[Curve]:
    """Groups the attacks that differ in eps alone, or in their steps alone.

    Without a common ``base`` the step sizes have to agree too, or to derive from the
    axis by the same rule.

    Returns:
        Curves of at least two different values, those against eps first; an attack may
        be on several.
    """
    return [
        *_along('eps', attacks),
        *_along('num_steps', [a for a in attacks if a.settings.get('num_steps')]),
    ]


def by_axis(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Groups the curves that can be drawn together: eps of different norms cannot."""
    groups: dict[Any, list[Curve]] = {}
    for curve in curves:
        axis = (curve.axis, curve.norm) if curve.axis == 'eps' else curve.axis
        groups.setdefault(axis, []).append(curve)
    return list(groups.values())


def _along(axis: str, attacks: Sequence[AttackResult]) -> list[Curve]:
    groups: dict[str, dict[float, AttackResult]] = {}
    for attack in attacks:
        value: Any = attack.settings.get(axis)
        if not is_number(value):
            continue
        settings = agreed_settings(attack, axis)
        for rule in [None] if attack.base else _step_rules(attack.settings, axis):
            key = json.dumps([settings, rule], sort_keys=True, default=str)
            groups.setdefault(key, {}).setdefault(float(value), attack)
    found = [group for group in groups.values() if len(group) > 1]
    kept: dict[int, set[str]] = {}  # names by place
    # A step size may fit two rules by chance; the longer curve tells more.
    for place in sorted(range(len(found)), key=lambda place: -len(found[place])):
        names = {attack.name for attack in found[place].values()}
        if not any(names <= other for other in kept.values()):
            kept[place] = names
    return [_curve(axis, found[place]) for place in sorted(kept)]


def _step_rules(settings: Mapping[str, Any], axis: str) -> list[Any]:
    """Returns the rules that may have given the step size."""
    step, eps, steps = (settings.get(k) for k in ('step_size', 'eps', 'num_steps'))
    rules: list[Any] = [step]
    if step and eps and axis == 'eps':
        rules.append(['of eps', f'{step / eps:.6g}'])
    elif step and eps and steps and math.isclose(step, min(eps, 2.5 * eps / steps)):
        rules.append('derived')  # as PGD does
    return rules


def _curve(axis: str, group: Mapping[float, AttackResult]) -> Curve:
    points = tuple(sorted(group.items()))
    first = points[0][1]
    count = first.settings.get('num_steps')
    unit = 'queries' if first.asks == 'values' else 'steps'
    fixed = f'eps {first.settings.get("eps", 0):g}'
    if axis == 'eps':
        fixed = f'{count} {unit}' if count else ''
    # Without a base the name may be like ``pgd-eps2``, as somebody wrote in a config.
    number = r'[-_. ]*(eps|steps|queries)?[-_. ]*[\d.]+$'
    names = [a.base or re.sub(number, '', a.name) or a.name for _, a in points]
    label = ', '.join(filter(None, [' / '.join(dict.fromkeys(names)), fixed]))
    norm = str(first.settings.get('norm'))
    return Curve(label, 'eps' if axis == 'eps' else unit, norm, points)
