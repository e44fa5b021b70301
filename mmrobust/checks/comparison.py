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

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..report import AttackResult, Figure, agreed_settings, figure_of

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


class _Pass:
    """A pass with its figure as a share of 1, and half the width of the interval."""

    def __init__(self, result: AttackResult, figure: Figure) -> None:
        settings = result.settings
        self.result, self.name, self.value = result, result.name, figure.share
        self.margin = UNKNOWN_MARGIN
        if figure.low is not None and figure.high is not None:
            self.margin = (figure.high - figure.low) / (200 if figure.percent else 2)
        self.eps = float(settings.get('eps') or 0)
        self.steps = int(settings.get('num_steps') or 0)
        self.objective: str | None = settings.get('objective')
        self.patch = settings.get('patch')  # what else its images may differ in
        self.ball = (settings.get('norm'), self.eps, str(self.patch))
        self.corruption = settings.get('corruption'), settings.get('severity')
        self.corrupted = self.corruption[0] is not None
        self.searches = result.asks != 'nothing'
        # Of what was fitted elsewhere, its file, which a control of it names, too.
        self.file, self.control_of = settings.get('file'), settings.get('control_of')
        self.white_box = result.asks == 'gradients' and not result.transferable


@dataclass(frozen=True)
class _Passes:
    """All passes, and the figure without attack as a share, if it is known."""

    benign: float | None
    all: Sequence[_Pass]

    @property
    def searches(self) -> list[_Pass]:
        return [each for each in self.all if each.searches]

    @property
    def ruin(self) -> float:
        """Returns what is left of AP when an attack has broken everything."""
        return BROKEN * (1.0 if self.benign is None else self.benign)

    def alike(self, axis: str, *free: str) -> list[list[_Pass]]:
        """Groups the searches that agree in all but the axis and what is free."""
        groups: dict[str, list[_Pass]] = {}
        for each in self.searches:
            settings = agreed_settings(each.result, axis, *free)
            key = json.dumps(settings, sort_keys=True, default=str)
            groups.setdefault(key, []).append(each)
        return list(groups.values())


_Found = Iterator[tuple[str, str]]


def comparison_verdicts(
    benign: Figure | None, attacks: Sequence[AttackResult]
) -> dict[str, list[str]]:
    """Judges the passes of an evaluation by each other.

    AP is a statistic of few images, and the objective that an attack climbs is not AP,
    so two passes count as different only if they differ by more than the mean of their
    margins, which are half the widths of the 95 % intervals over images. For figures of
    the same images that is careful: their difference has at most the standard error of
    one of them as soon as they correlate by 0.5 or more (its variance is
    ``2 s**2 (1 - r)``).

    Attacks on corrupted pictures are compared among those on the same pictures.

    Args:
        benign: the figure without attack (see :func:`mmrobust.report.figure_of`); None
            if it is unknown.
        attacks: the passes. Passes that are compared along eps or steps must agree in
            all other settings, but for the step size, which follows from both.

    Returns:
        Sentences by the name of the attack; names without any are left out.
    """
    groups: dict[Any, list[_Pass]] = {}
    for result in attacks:
        figure = figure_of(result.metrics, result.judged)
        # Latency is not meant to lower AP.
        if figure is not None and result.settings.get('objective') != 'latency':
            each = _Pass(result, figure)
            groups.setdefault(each.corruption, []).append(each)
    sentences: dict[str, list[str]] = {}
    for found in groups.values():
        passes = _on_the_same_pictures(benign, found)
        for check in _CHECKS:
            told: set[str] = set()  # a pass that is weaker than several others: once
            for name, sentence in check(passes):
                if name not in told:
                    sentences.setdefault(name, []).append(sentence)
                told.add(name)
    return sentences


def _on_the_same_pictures(benign: Figure | None, found: Sequence[_Pass]) -> _Passes:
    """Of corrupted pictures the pass without an attack is the benign one."""
    if not found[0].corrupted:
        return _Passes(None if benign is None else benign.share, found)
    plain = [each.value for each in found if each.ball[0] is None]
    attacked = [each for each in found if each.ball[0] is not None]
    return _Passes(plain[0] if plain else None, attacked)


def _above_benign(passes: _Passes) -> _Found:
    benign = passes.benign
    if benign is None:
        return
    for each in passes.searches:
        gain = each.value - benign
        # The interval of the difference on the same draws, if there is one.
        drop = Figure.resampled((each.result.judged or {}).get('drop'))
        if drop is None or drop.high is None or each.corrupted:
            sure = gain > each.margin
        else:
            sure = drop.high < 0
        if gain > SAME and sure:
            yield (
                each.name,
                f'AP under attack is {each.value:.3f}, above the benign '
                f'{benign:.3f}: the attack helps the detector; the sign of the '
                'objective or the frame of the ground truth is wrong.',
            )


def _noise(passes: _Passes) -> _Found:
    noises: dict[tuple, _Pass] = {}
    for each in passes.all:
        lowest = noises.get(each.ball)
        if each.searches or each.file:
            continue
        if lowest is None or each.value < lowest.value:
            noises[each.ball] = each
    for each in passes.searches:
        noise = noises.get(each.ball)
        if noise is None or each.eps == 0 or noise.value <= passes.ruin:
            continue
        margin = _mean_margin(each, noise)
        # In a coarse figure a tie means nothing, and after the ruin neither.
        allowed = -max(SAME, DRAWS * margin) if margin <= COARSE else margin
        # Noise may also help, which makes no good attack of one without effect.
        benign = noise.value if passes.benign is None else passes.benign
        level = min(noise.value, benign)
        if each.value - level >= allowed:
            yield (
                each.name,
                f'AP is {each.value:.3f}, no lower than under '
                f'{"a control" if each.patch else "random noise"} of '
                f'the same norm and eps ({noise.name}: {noise.value:.3f}) or than '
                'without attack: the attack finds nothing, because its gradient is '
                'masked, its objective does not concern the detections, or its steps '
                'are too few.',
            )


def _fitted(passes: _Passes) -> _Found:
    for each in passes.all:
        controls = [
            other
            for other in passes.all
            if each.file and (other.control_of, other.ball) == (each.file, each.ball)
        ]
        lowest = min(controls, key=lambda p: p.value, default=None)
        if lowest is None or each.eps == 0 or lowest.value <= passes.ruin:
            continue
        gain = lowest.value - each.value
        if gain < max(SAME, DRAWS * _mean_margin(each, lowest)):
            yield (
                each.name,
                f'AP is {each.value:.3f}, and {lowest.value:.3f} under its control '
                f'({lowest.name}): what was fitted does no more to this detector than '
                'what was not.',
            )


def _along_eps(passes: _Passes) -> _Found:
    for small, large in _pairs(passes.alike('eps'), lambda each: each.eps):
        if small.eps > 0 and _stalls(passes, small, large):
            yield (
                large.name,
                f'AP is {large.value:.3f} at eps {large.eps:g} and {small.value:.3f} '
                f'at eps {small.eps:g} ({small.name}): it should fall as the ball '
                'grows; gradients are masked beyond the smaller ball, or the steps '
                'are too short or too few to cross the larger one.',
            )


def _stalls(passes: _Passes, small: _Pass, large: _Pass) -> bool:
    """Returns whether a larger ball did not help although it should have.

    Losing AP grows at least in proportion to eps at first and slows down towards the
    ruin. With what the smaller ball took, and what is left, a third of the proportional
    growth is the least to be expected; noticeable is what exceeds the margin.
    """
    margin = _mean_margin(small, large)
    fall = small.value - large.value
    if fall < -max(margin, SAME) and large.value > passes.ruin:
        return True
    if passes.benign is None or small.objective not in _WHOLE:
        return False
    left = small.value - passes.ruin
    growth = max(passes.benign - small.value, 0) * (large.eps / small.eps - 1)
    return fall + margin < min(growth, left) / 3


def _along_steps(passes: _Passes) -> _Found:
    groups = passes.alike('num_steps', 'random_start')
    for few, many in _pairs(groups, lambda each: each.steps):
        # Attacks converge, so that more steps need not help; but never harm.
        rise = many.value - few.value
        if rise > max(_mean_margin(few, many), SAME) and many.value > passes.ruin:
            yield (
                many.name,
                f'AP is {many.value:.3f} after {many.steps} steps and '
                f'{few.value:.3f} after {few.steps} ({few.name}): more steps '
                'should not be weaker; gradients are masked or noisy, the steps '
                'too short, or what the attack maximises is not what lowers AP.',
            )


def _without_gradient(passes: _Passes) -> _Found:
    # Of an ensemble, which may have members without gradients, the members count.
    direct = [p for p in passes.searches if p.white_box and not p.result.members]
    for each in passes.searches:
        rivals = [p for p in direct if p.ball == each.ball]
        if each.result.transferable:
            # Of one objective, and at no lower cost, the true gradient is better.
            rivals = [p for p in rivals if p.objective == each.objective]
            rivals = [p for p in rivals if p.steps >= each.steps]
        if each.white_box or not rivals:
            continue
        best = min(rivals, key=lambda p: p.value)
        weaker = best.value - each.value > max(_mean_margin(best, each), SAME)
        if weaker and best.value > passes.ruin:
            kind = 'transfer' if each.result.transferable else 'gradient-free'
            yield (
                each.name,
                f'AP is {each.value:.3f}, below the {best.value:.3f} of the best '
                f'white-box attack at the same norm and eps ({best.name}), '
                f'although this is a {kind} attack: the white-box attacks are too '
                'weak (masked gradients, too few steps, another objective), and '
                'AP under them is no estimate of robustness.',
            )


def _unbounded(passes: _Passes) -> _Found:
    for each in passes.searches:
        norm, eps, _ = each.ball
        whole = each.white_box and norm == 'linf' and eps >= UNBOUNDED_LINF
        whole = whole and not each.patch
        if whole and each.value - each.margin > passes.ruin:
            yield (
                each.name,
                f'AP is {each.value:.3f} at eps {each.eps:g}, where every image can be '
                'made plain grey, and should be near 0: the attack does not find what '
                'is there, or the detections do not depend on the image.',
            )


_CHECKS: tuple[Callable[[_Passes], _Found], ...] = (
    *(_above_benign, _noise, _fitted, _along_eps, _along_steps),
    *(_without_gradient, _unbounded),
)


def _pairs(
    groups: Sequence[Sequence[_Pass]], size: Callable[[_Pass], float]
) -> Iterator[tuple[_Pass, _Pass]]:
    """Yields the pairs in each group whose second one is larger."""
    for group in groups:
        for small, large in combinations(sorted(group, key=size), 2):
            if size(small) < size(large):
                yield small, large


def _mean_margin(first: _Pass, second: _Pass) -> float:
    return (first.margin + second.margin) / 2
