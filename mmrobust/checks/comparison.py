"""Passes judged by each other: which figures should not be believed as they are.

Pure functions. The signs are those of Athalye et al. (arXiv 1802.00420, section 3.1:
one-step attacks better than iterative ones, black-box better than white-box, unbounded
attacks that do not reach 100 %, random sampling that finds adversarial examples, a
larger bound that does not help) and of Carlini et al. (arXiv 1902.06705), and the
warnings of AutoAttack (Croce and Hein, arXiv 2003.01690; as of its implementation: any
point with a zero gradient, Square below the white-box attacks by over 0.2 points of
accuracy, outputs that differ between calls).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..report import AttackResult

# Passes are compared on the same images, so AP below this is mere reordering of
# detections; AutoAttack takes the same for accuracy.
SAME = 0.002

# How far passes of noise, on the same images, lie apart, as a share of the margin: that
# of 40 images of the demo is 0.06, and noise of five sizes gave 0.751 to 0.756.
DRAWS = 0.1

# An AP of at most this share of the benign one counts as broken: what is left of it
# moves up and down without a meaning.
BROKEN = 0.1

# Without an interval nothing is known of the spread; that of 100 images of the
# demo is 0.03 to 0.05.
UNKNOWN_MARGIN = 0.05

# If figures are known no better than this, "no difference" says nothing.
COARSE = 0.1

# Half the pixel range: every image can be made plain grey.
UNBOUNDED_LINF = 128.0

# Objectives that concern all of the detections. Others cannot bring AP to 0 (box losses
# leave the classes right), so that a larger ball need not help them for ever.
_WHOLE = ('total', 'detections')

# Figures in percent, by the end of their keys.
_PERCENT = ('PQ', 'top1')
_MAIN = ('bbox_mAP', 'mAP', 'AP50', 'segm_mAP', *_PERCENT)


@dataclass(frozen=True)
class Figure:
    """The figure of a pass that is compared.

    Attributes:
        value: in [0, 1].
        margin: half the width of its bootstrap interval over images.
    """

    value: float
    margin: float = UNKNOWN_MARGIN


def figure_of(
    metrics: Mapping[str, Any], boxes: Mapping[str, Any] | None = None
) -> Figure | None:
    """The figure by which a pass is compared.

    Args:
        metrics: as the evaluator gives them.
        boxes: as in :class:`mmrobust.report.AttackResult`; its mAP comes first,
            because it has an interval.

    Returns:
        The figure, with percent as shares; None if there is no finite one.
    """
    interval = (boxes or {}).get('mAP')
    if interval and _is_number(interval.get('estimate')):
        known = _is_number(interval.get('low')) and _is_number(interval.get('high'))
        margin = UNKNOWN_MARGIN
        if known:
            margin = (float(interval['high']) - float(interval['low'])) / 2
        return Figure(float(interval['estimate']), margin)
    for end in _MAIN:
        for key, value in metrics.items():
            if key.split('/')[-1] == end and _is_number(value):
                return Figure(value / 100 if end in _PERCENT else float(value))
    return None


@dataclass(frozen=True)
class _Pass:
    name: str
    settings: Mapping[str, Any]
    figure: Figure
    drop: Mapping[str, Any] | None

    @property
    def value(self) -> float:
        return self.figure.value

    @property
    def eps(self) -> float:
        return float(self.settings.get('eps') or 0)

    @property
    def steps(self) -> int:
        return int(self.settings.get('num_steps') or 0)

    @property
    def searches(self) -> bool:
        return self.steps > 0

    @property
    def gradient_free(self) -> bool:
        return bool(self.settings.get('gradient_free'))

    @property
    def ensemble(self) -> bool:
        return bool(self.settings.get('members'))

    @property
    def transferred(self) -> bool:
        return bool(self.settings.get('source'))

    @property
    def bent(self) -> bool:
        # TransferPGD: gradients of this model, bent to suit others.
        return not self.transferred and 'decay' in self.settings

    @property
    def white_box(self) -> bool:
        other = self.gradient_free or self.transferred or self.bent
        return self.searches and not other

    @property
    def ball(self) -> tuple[Any, float]:
        return self.settings.get('norm'), self.eps


def comparison_verdicts(
    benign: float | None, attacks: Sequence[AttackResult]
) -> dict[str, list[str]]:
    """Judges the passes of an evaluation by each other.

    AP is a statistic of few images, and the objective that an attack climbs is not AP,
    so two passes count as different only if they differ by more than the mean of their
    margins, which are half the widths of the 95 % intervals over images. For figures of
    the same images that is careful: their difference has at most the standard error of
    one of them as soon as they correlate by 0.5 or more (its variance is
    ``2 s**2 (1 - r)``).

    Args:
        benign: AP without attack, in [0, 1] (see :func:`figure_of`); None if unknown.
        attacks: the passes. Of their settings these matter: ``norm``, ``eps``,
            ``num_steps`` (0 for noise), ``objective``, ``gradient_free`` (missing
            means False) and ``source`` (the images come from another model); passes
            that are compared along eps or steps must agree in all others, but for the
            step size, which follows from both.

    Returns:
        Sentences by the name of the attack; names without any are left out.
    """
    passes = []
    for result in attacks:
        figure = figure_of(result.metrics, result.boxes)
        if figure is not None:
            drop = (result.boxes or {}).get('drop')
            passes.append(_Pass(result.name, result.settings, figure, drop))
    found: dict[str, list[str]] = {}
    for check in (_above_benign, _noise, _along_eps, _along_steps, _without_gradient):
        for name, sentence in check(benign, passes):
            found.setdefault(name, []).append(sentence)
    for name, sentence in _unbounded(benign, passes):
        found.setdefault(name, []).append(sentence)
    return found


_Found = list[tuple[str, str]]


def _above_benign(benign: float | None, passes: Sequence[_Pass]) -> _Found:
    found = []
    for each in passes:
        if benign is None or not each.searches:
            continue
        gain = each.value - benign
        # The interval of the difference on the same draws, if there is one.
        high: Any = (each.drop or {}).get('high')
        sure = high < 0 if _is_number(high) else gain > each.figure.margin
        if gain > SAME and sure:
            found.append(
                (
                    each.name,
                    f'AP under attack is {each.value:.3f}, above the benign '
                    f'{benign:.3f}: the attack helps the detector; the sign of the '
                    'objective or the frame of the ground truth is wrong.',
                )
            )
    return found


def _noise(benign: float | None, passes: Sequence[_Pass]) -> _Found:
    found = []
    for each in passes:
        # Images of another model may well do no harm; that is a finding, no fault.
        if not each.searches or each.settings.get('source') or each.eps == 0:
            continue
        noises = [p for p in passes if not p.searches and p.ball == each.ball]
        for noise in noises[:1]:
            margin = _margin(each, noise)
            # In a coarse figure a tie means nothing, and after the ruin neither.
            allowed = -max(SAME, DRAWS * margin) if margin <= COARSE else margin
            # Noise may also help, which makes no good attack of one without effect.
            level = noise.value if benign is None else min(noise.value, benign)
            if noise.value > _ruin(benign) and each.value - level >= allowed:
                found.append(
                    (
                        each.name,
                        f'AP is {each.value:.3f}, no lower than under random noise of '
                        f'the same norm and eps ({noise.name}: {noise.value:.3f}) or '
                        'than without attack: '
                        'the attack finds nothing, because its gradient is masked, its '
                        'objective does not concern the detections, or its steps are '
                        'too few.',
                    )
                )
    return found


def _along_eps(benign: float | None, passes: Sequence[_Pass]) -> _Found:
    found: dict[str, str] = {}
    for group in _alike(passes, ('eps', 'step_size')):
        group = sorted((p for p in group if p.eps > 0), key=lambda p: p.eps)
        for small, large in combinations(group, 2):
            if small.eps == large.eps or large.name in found:
                continue
            if not _stalls(benign, small, large):
                continue
            found[large.name] = (
                f'AP is {large.value:.3f} at eps {large.eps:g} and {small.value:.3f} '
                f'at eps {small.eps:g} ({small.name}): it should fall as the ball '
                'grows; gradients are masked beyond the smaller ball, or the steps '
                'are too short or too few to cross the larger one.'
            )
    return list(found.items())


def _stalls(benign: float | None, small: _Pass, large: _Pass) -> bool:
    """Whether a larger ball did not help although it should have.

    Losing AP grows at least in proportion to eps at first and slows down towards the
    ruin. With what the smaller ball took, and what is left, a third of the proportional
    growth is the least to be expected; noticeable is what exceeds the margin.
    """
    margin = _margin(small, large)
    fall = small.value - large.value
    if fall < -max(margin, SAME) and large.value > _ruin(benign):
        return True
    left = small.value - _ruin(benign)
    if benign is None or small.settings.get('objective') not in _WHOLE:
        return False
    growth = max(benign - small.value, 0) * (large.eps / small.eps - 1)
    return fall + margin < min(growth, left) / 3


def _along_steps(benign: float | None, passes: Sequence[_Pass]) -> _Found:
    found: dict[str, str] = {}
    for group in _alike(passes, ('num_steps', 'step_size', 'random_start')):
        group = sorted(group, key=lambda p: p.steps)
        for few, many in combinations(group, 2):
            if few.steps == many.steps or many.name in found:
                continue
            # Attacks converge, so that more steps need not help; but never harm.
            rise = many.value - few.value
            harm = rise > max(_margin(few, many), SAME)
            if harm and many.value > _ruin(benign):
                found[many.name] = (
                    f'AP is {many.value:.3f} after {many.steps} steps and '
                    f'{few.value:.3f} after {few.steps} ({few.name}): more steps '
                    'should not be weaker; gradients are masked or noisy, the steps '
                    'too short, or what the attack maximises is not what lowers AP.'
                )
    return list(found.items())


def _without_gradient(benign: float | None, passes: Sequence[_Pass]) -> _Found:
    found = []
    for each in passes:
        # Of an ensemble, which may have members without gradients, the members count.
        rivals = [p for p in passes if p.white_box and not p.ensemble]
        rivals = [p for p in rivals if p.ball == each.ball]
        if each.bent:
            # Of one objective, and at no lower cost, the true gradient is better.
            objective = each.settings.get('objective')
            rivals = [p for p in rivals if p.settings.get('objective') == objective]
            rivals = [p for p in rivals if p.steps >= each.steps]
        if not each.searches or each.white_box or not rivals:
            continue
        best = min(rivals, key=lambda p: p.value)
        weaker = best.value - each.value > max(_margin(best, each), SAME)
        if weaker and best.value > _ruin(benign):
            kind = 'gradient-free' if each.gradient_free else 'transfer'
            found.append(
                (
                    each.name,
                    f'AP is {each.value:.3f}, below the {best.value:.3f} of the best '
                    f'white-box attack at the same norm and eps ({best.name}), '
                    f'although this is a {kind} attack: the white-box attacks are too '
                    'weak (masked gradients, too few steps, another objective), and '
                    'AP under them is no estimate of robustness.',
                )
            )
    return found


def _unbounded(benign: float | None, passes: Sequence[_Pass]) -> _Found:
    return [
        (
            each.name,
            f'AP is {each.value:.3f} at eps {each.eps:g}, where every image can be '
            'made plain grey, and should be near 0: the attack does not find what is '
            'there, or the detections do not depend on the image.',
        )
        for each in passes
        if each.white_box
        and each.settings.get('norm') == 'linf'
        and each.eps >= UNBOUNDED_LINF
        and each.value - each.figure.margin > _ruin(benign)
    ]


def _alike(passes: Sequence[_Pass], free: Sequence[str]) -> list[list[_Pass]]:
    """Searches whose settings agree in all but the free ones."""
    groups: dict[str, list[_Pass]] = {}
    for each in passes:
        if not each.searches:
            continue
        settings = {k: v for k, v in each.settings.items() if k not in free}
        # Pairs (multiple of eps, steps): the steps are those of num_steps.
        radii = settings.get('radius_schedule')
        if radii is not None:
            settings['radius_schedule'] = [multiple for multiple, _ in radii]
        if 'num_queries' in settings and 'num_steps' in free:
            del settings['num_queries']
        groups.setdefault(repr(sorted(settings.items())), []).append(each)
    return [group for group in groups.values() if len(group) > 1]


def _ruin(benign: float | None) -> float:
    return BROKEN * (benign if benign is not None else 1.0)


def _margin(first: _Pass, second: _Pass) -> float:
    return (first.figure.margin + second.figure.margin) / 2


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not hasattr(value, '__float__'):
        return False
    return math.isfinite(float(value))
