"""Averages an oracle's answers over what a randomised model draws (EOT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class ExpectedOracle:
    """The mean of an oracle's answers over several draws, which climbs their mean.

    Expectation over transformation (Athalye et al., arXiv 1707.07397 and 1802.00420):
    each answer is of fresh draws, since an oracle's draws go on from call to call, and
    the variance of the mean is that of one draw divided by their number.

    It has all attributes of the wrapped oracle, which counts every draw as a pass.

    Args:
        oracle: the oracle of a randomised model.
        draws: how many draws make an answer, at least 1.
    """

    def __init__(self, oracle: Any, draws: int) -> None:
        self._oracle, self._draws = oracle, draws

    def __getattr__(self, name: str) -> Any:
        return getattr(self._oracle, name)

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """See :class:`mmrobust.attacks.Oracle`."""
        value: Tensor = self._oracle.value(images)
        for _ in range(self._draws - 1):
            value = value + self._oracle.value(images)
        return value / self._draws

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See :class:`mmrobust.attacks.Oracle`."""
        value, sums = self._oracle.value_and_grad(images)
        for _ in range(self._draws - 1):
            other, grads = self._oracle.value_and_grad(images)
            value = value + other
            sums = [total + grad for total, grad in zip(sums, grads, strict=True)]
        return value / self._draws, [total / self._draws for total in sums]


def expected(oracle: Any, draws: int) -> Any:
    """Returns the mean of the oracle's answers over draws; of one, the oracle."""
    return oracle if draws == 1 else ExpectedOracle(oracle, draws)
