"""A pass judged by how its oracle answered.

Pure functions; the signs are those of :mod:`mmrobust.checks.comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# An image counts as one without gradient if that held for half of its steps: a single
# step on a flat spot is no obstacle to the others.
FLAT_STEPS = 0.5

# AutoAttack warns of a single point without gradient in a batch of a classifier's; in a
# detection set of thousands one odd image in a hundred is tolerated.
FLAT_IMAGES = 0.01

# Of a healthy detector next to no gradient value is exactly 0 (at most 0.5 % over all
# objectives on the demo's detectors), but an objective that concerns one small object
# may be blind to the far side of a large picture. Half of the values is beyond that.
ZERO_VALUES = 0.5

# Steps along a true gradient raised the objective on all images of the demo's
# detectors, whatever the objective; diverse inputs, whose values jump, failed on one in
# eight. A gradient that leads nowhere fails on all, or on half by luck.
NOT_RISING = 0.5

# A single large step may overshoot on any network.
MIN_STEPS = 3
MIN_QUERIES = 10


def pass_verdicts(watched: Sequence[Mapping[str, Any]]) -> list[str]:
    """Judges how an attack's oracle answered.

    Args:
        watched: what :meth:`mmrobust.checks.WatchedOracle.summary` returned, of all
            images of a pass; none of a pass that asks nothing (noise).

    Returns:
        A sentence for each thing that is suspicious.
    """
    return [*_not_finite(watched), *_zero_gradients(watched), *_not_rising(watched)]


def _not_finite(watched: Sequence[Mapping[str, Any]]) -> list[str]:
    bad = [row['non_finite'] for row in watched if row['non_finite']]
    if not bad:
        return []
    return [
        f'the objective was not finite {sum(bad)} times on {len(bad)} of '
        f'{len(watched)} images, and the attack could not use these points: look for '
        'an overflow in the losses (half precision, logarithms, boxes without area).'
    ]


def _zero_gradients(watched: Sequence[Mapping[str, Any]]) -> list[str]:
    asked = [row for row in watched if row['gradient_calls']]
    rows = [row for row in asked if row['informative_calls']]
    if asked and not rows and any(row['zero_calls'] for row in asked):
        return [
            f'the objective was 0 at every step on all {len(asked)} images, so the '
            'attack had nothing to climb: the figure says nothing about robustness, '
            'take an objective that these images have.'
        ]
    flat = sum(row['all_zero_share'] >= FLAT_STEPS for row in rows)
    if rows and flat >= max(1, FLAT_IMAGES * len(rows)):
        return [
            f'on {flat} of {len(rows)} images the gradient is exactly 0 in at least '
            f'{FLAT_STEPS:.0%} of the steps, so the attack could not move: something '
            'in front of the losses hides gradients (rounding, a threshold, a '
            'saturated or detached part); attack without it or by a differentiable '
            'stand-in, and run a gradient-free attack.'
        ]
    mean = sum(row['zero_share'] for row in rows) / max(len(rows), 1)
    if mean >= ZERO_VALUES:
        return [
            f'{mean:.0%} of all gradient values are exactly 0: a saturated or '
            'quantised part may hide gradients, or the objective sees only a part of '
            'the image; compare with a gradient-free attack.'
        ]
    return []


def _not_rising(watched: Sequence[Mapping[str, Any]]) -> list[str]:
    sentences = []
    steps = [
        row['last'] <= row['start']
        for row in watched
        if row['gradient_calls'] >= MIN_STEPS
        and row['informative_calls']
        and row['last'] is not None
        and row['start'] is not None
    ]
    if sum(steps) > NOT_RISING * len(steps):
        sentences.append(
            f'on {sum(steps)} of {len(steps)} images the objective is no larger after '
            'the last step than before the first one: the gradient does not lead '
            'upwards (it is masked, wrong or random) or the steps are too large; the '
            'figure is no bound on what an adversary can do.'
        )
    queries = [
        row['best'] <= row['first']
        for row in watched
        if not row['gradient_calls']
        and row['calls'] >= MIN_QUERIES
        and row['best'] is not None
        and row['first'] is not None
    ]
    if sum(queries) > NOT_RISING * len(queries):
        sentences.append(
            f'on {sum(queries)} of {len(queries)} images no query had a larger '
            'objective than the clean image: the output may not depend on the image, '
            'or there are too few queries.'
        )
    return sentences
