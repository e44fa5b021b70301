"""Watches how an attack's oracle answers, and judges the pass by it.

The signs of masked gradients are those of :mod:`mmrobust.checks.comparison`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks import Oracle

# Columns of the one tensor that summary() reads off the device.
_COLUMNS = (
    *('zero_share', 'all_zero_share', 'informative_calls', 'zero_calls', 'non_finite'),
    *('first', 'start', 'last', 'best_quarter', 'best_half', 'best'),
)
_COUNTS = ('informative_calls', 'zero_calls', 'non_finite')

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


class WatchedOracle:
    """An oracle that remembers, image by image, how its answers looked.

    It answers exactly as the wrapped oracle does, whose attributes it also has (counts
    of passes, scores, the context in which its objects are moved). Values and
    gradients are reduced where they are, one small operation each per call, and the
    host waits for none of them before :meth:`summary`.

    What is watched is after the checks of AutoAttack (Croce and Hein, arXiv
    2003.01690; its implementation warns of points whose gradient is exactly zero) and
    of Carlini et al. (arXiv 1902.06705, whose checklist has attacks converge).

    Args:
        oracle: the oracle; always asked for the same images, in the same order.
    """

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._values: list[Tensor] = []  # of every call
        self._asked: list[int] = []  # which of them were for gradients
        self._zeros: list[list[Tensor]] = []  # of these, per image
        self._sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        if name == '_oracle':  # while being copied or unpickled, before it is set
            raise AttributeError(name)
        return getattr(self._oracle, name)

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """See :class:`mmrobust.attacks.Oracle`."""
        values = self._oracle.value(images)
        self._see(values, len(images))
        return values

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See :class:`mmrobust.attacks.Oracle`."""
        values, grads = self._oracle.value_and_grad(images)
        self._asked.append(len(self._values))
        self._see(values, len(images))
        # count_nonzero answers on the device; NaN counts as not zero.
        self._zeros.append([torch.count_nonzero(grad) for grad in grads])
        self._sizes = [grad.numel() for grad in grads]
        return values, grads

    def _see(self, values: Tensor, count: int) -> None:
        # A copy: the attack may write into what it got. (1,) is shared by the batch.
        self._values.append(values.detach().float().expand(count).clone())

    def summary(self) -> list[dict[str, float | int | None]]:
        """Reduces what was seen, and reads it off the device once.

        Calls in which the objective is exactly 0 or not finite say nothing about the
        gradient there: box losses of an image without objects, an objective that is 0
        once every object is fooled. The others are called informative.

        Returns:
            A dict for each image, empty if the oracle was never asked. None stands for
            what is not known:

            - ``calls``: how often the objective was asked for, with a gradient or
              without.
            - ``gradient_calls``: those with a gradient.
            - ``informative_calls``: those at points where the objective is not 0.
            - ``zero_calls``: those at points where it is exactly 0.
            - ``zero_share``: share of exactly zero gradient values, mean over the
              informative calls.
            - ``all_zero_share``: share of informative calls with nothing but zeros.
            - ``first``: the objective at the first call of any kind.
            - ``start``: at the first gradient call, where the steps began.
            - ``last``: at the last call of any kind after that one.
            - ``best_quarter``, ``best_half``: largest objective of all calls up to and
              with the gradient call after which a quarter, a half of them are made;
              None with fewer than 4.
            - ``best``: largest objective of all calls.
            - ``non_finite``: calls of any kind with an objective that is not finite.
        """
        if not self._values:
            return []
        seen, calls = torch.stack(self._values), len(self._asked)
        bad = ~seen.isfinite()
        bests = seen.masked_fill(bad, -math.inf).cummax(0).values
        nothing = torch.full_like(seen[0], math.nan)
        table: dict[str, Any] = dict.fromkeys(_COLUMNS, nothing)
        table['first'], table['best'] = seen[0], bests[-1]
        table['non_finite'] = bad.sum(0)
        table['informative_calls'] = table['zero_calls'] = torch.zeros_like(nothing)
        if calls:
            values = seen[self._asked]
            usable = (values != 0) & values.isfinite()
            sizes = torch.tensor(self._sizes, device=values.device).clamp_min(1)
            zeros = [torch.stack(counts) for counts in self._zeros]
            nonzero = torch.stack(zeros).to(values.device)
            informative = usable.sum(0)
            # 0 / 0, which is NaN, where no call was informative.
            table['zero_share'] = ((1 - nonzero / sizes) * usable).sum(0) / informative
            table['all_zero_share'] = ((nonzero == 0) & usable).sum(0) / informative
            table['informative_calls'] = informative
            table['zero_calls'] = (values == 0).sum(0)
            table['start'] = values[0]
            if self._asked[0] < len(seen) - 1:
                table['last'] = seen[-1]
        if calls >= 4:
            table['best_quarter'] = bests[self._asked[math.ceil(calls / 4) - 1]]
            table['best_half'] = bests[self._asked[math.ceil(calls / 2) - 1]]
        columns = [table[name].to(nothing) for name in _COLUMNS]
        counts = {'calls': len(seen), 'gradient_calls': calls}
        return [{**counts, **_row(row)} for row in torch.stack(columns, 1).tolist()]


def _row(row: Sequence[float]) -> dict[str, float | int | None]:
    known = [value if math.isfinite(value) else None for value in row]
    return {
        name: int(value) if name in _COUNTS and value is not None else value
        for name, value in zip(_COLUMNS, known, strict=True)
    }


def pass_verdicts(watched: Sequence[Mapping[str, Any]]) -> list[str]:
    """Judges how an attack's oracle answered.

    Args:
        watched: what :meth:`mmrobust.checks.WatchedOracle.summary` returned, of all
            images of a pass; none of a pass that asks nothing (noise).

    Returns:
        A sentence for each thing that is suspicious.
    """
    sentences = []
    if bad := [row['non_finite'] for row in watched if row['non_finite']]:
        sentences.append(
            f'the objective was not finite {sum(bad)} times on {len(bad)} of '
            f'{len(watched)} images, and the attack could not use these points: look '
            'for an overflow in the losses (half precision, logarithms, boxes without '
            'area).'
        )
    return [*sentences, *_zero_gradients(watched), *_not_rising(watched)]


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
        if row['gradient_calls'] >= MIN_STEPS and row['informative_calls']
        if None not in (row['last'], row['start'])
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
        if not row['gradient_calls'] and row['calls'] >= MIN_QUERIES
        if None not in (row['best'], row['first'])
    ]
    if sum(queries) > NOT_RISING * len(queries):
        sentences.append(
            f'on {sum(queries)} of {len(queries)} images no query had a larger '
            'objective than the clean image: the output may not depend on the image, '
            'or there are too few queries.'
        )
    return sentences
