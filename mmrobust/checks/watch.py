"""What an attack got from its oracle: figures that give masked gradients away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks.base import Oracle

# Columns of the one tensor that summary() reads off the device.
_COLUMNS = (
    *('zero_share', 'all_zero_share', 'informative_calls', 'zero_calls', 'non_finite'),
    *('first', 'start', 'last', 'best_quarter', 'best_half', 'best'),
)
_COUNTS = ('informative_calls', 'zero_calls', 'non_finite')


class WatchedOracle:
    """An oracle that remembers, image by image, how its answers looked.

    It answers exactly as the wrapped oracle does, which also gets every attribute that
    is read from or set on this one (counts of passes, scores, the samples that
    :class:`mmrobust.attacks.TransferPGD` moves along with its images). Values and
    gradients are reduced where they are, a few small operations per call, and the host
    waits for none of them before :meth:`summary`.

    What is watched is after the checks of AutoAttack (Croce and Hein, arXiv
    2003.01690; its implementation warns of points whose gradient is exactly zero) and
    of Carlini et al. (arXiv 1902.06705, whose checklist has attacks converge).

    Args:
        oracle: the oracle; always asked for the same images, in the same order.
    """

    _oracle: Any
    _best: Tensor
    _first: Tensor
    _non_finite: Tensor

    def __init__(self, oracle: Oracle) -> None:
        # Names with an underscore are this object's own, see __setattr__.
        self._oracle = oracle
        self._calls = 0
        self._last: Tensor | None = None  # of what came after the first gradient
        self._values: list[Tensor] = []
        self._bests: list[Tensor] = []
        self._zeros: list[Tensor] = []
        self._sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        if name == '_oracle':  # while being copied or unpickled, before it is set
            raise AttributeError(name)
        return getattr(self._oracle, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith('_'):
            object.__setattr__(self, name, value)
        else:
            setattr(self._oracle, name, value)

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """See :class:`mmrobust.attacks.Oracle`."""
        values = self._oracle.value(images)
        self._see(values, len(images))
        return values

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See :class:`mmrobust.attacks.Oracle`."""
        values, grads = self._oracle.value_and_grad(images)
        own = self._see(values, len(images))
        self._values.append(own)
        self._bests.append(self._best)
        # count_nonzero answers on the device; NaN counts as not zero.
        self._zeros.append(torch.stack([torch.count_nonzero(g) for g in grads]))
        self._sizes = [grad.numel() for grad in grads]
        return values, grads

    def _see(self, values: Tensor, count: int) -> Tensor:
        # A copy: the attack may write into what it got. (1,) is shared by the batch.
        values = values.detach().float().expand(count).clone()
        bad = ~values.isfinite()
        finite = values.masked_fill(bad, -math.inf)
        if self._calls:
            self._best = torch.maximum(self._best, finite)
            self._non_finite = self._non_finite + bad
        else:
            self._first, self._best, self._non_finite = values, finite, bad.int()
        self._calls += 1
        if self._values:
            self._last = values
        return values

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
        if not self._calls:
            return []
        calls = len(self._values)
        nothing = torch.full_like(self._best, math.nan)
        table: dict[str, Any] = dict.fromkeys(_COLUMNS, nothing)
        table['first'], table['best'] = self._first, self._best
        table['non_finite'] = self._non_finite
        table['informative_calls'] = table['zero_calls'] = torch.zeros_like(nothing)
        if calls:
            values = torch.stack(self._values)
            usable = (values != 0) & values.isfinite()
            sizes = torch.tensor(self._sizes, device=values.device).clamp_min(1)
            nonzero = torch.stack(self._zeros).to(values.device)
            informative = usable.sum(0)
            # 0 / 0, which is NaN, where no call was informative.
            table['zero_share'] = ((1 - nonzero / sizes) * usable).sum(0) / informative
            table['all_zero_share'] = ((nonzero == 0) & usable).sum(0) / informative
            table['informative_calls'] = informative
            table['zero_calls'] = (values == 0).sum(0)
            table['start'] = self._values[0]
        if self._last is not None:
            table['last'] = self._last
        if calls >= 4:
            table['best_quarter'] = self._bests[math.ceil(calls / 4) - 1]
            table['best_half'] = self._bests[math.ceil(calls / 2) - 1]
        columns = [table[name].to(nothing) for name in _COLUMNS]
        counts = {'calls': self._calls, 'gradient_calls': calls}
        return [{**counts, **_row(row)} for row in torch.stack(columns, 1).tolist()]


def _row(row: Sequence[float]) -> dict[str, float | int | None]:
    known = [value if math.isfinite(value) else None for value in row]
    return {
        name: int(value) if name in _COUNTS and value is not None else value
        for name, value in zip(_COLUMNS, known, strict=True)
    }
