"""Moves stacks of images for APGD, and adapts their step sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..threat import ThreatModel
from .base import finite


def choose(where: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """``images`` where the flags (n,) say so, else ``others``, without host waits."""
    return torch.where(where.view(-1, 1, 1, 1), images, others)


class Search:
    """The ascent on a stack of images (n, C, H, W), each with its own step size (n,).

    The caller evaluates the objective (n,) and its gradient at ``current``, tells
    ``record``, now and then calls ``adapt``, and asks for the next point by
    ``advance``. ``best`` and ``best_value`` are the best point so far.
    """

    reach = 2.0  # first step size as a multiple of eps

    best_value: Tensor
    grad: Tensor
    best_grad: Tensor

    def __init__(
        self, threat: ThreatModel, clean: Tensor, start: Tensor, rho: float
    ) -> None:
        self.threat, self.clean, self.rho = threat, clean, rho
        self.current = self.best = start
        self.previous: Tensor | None = None
        self.value: Tensor | None = None
        self.step_size = clean.new_full(clean.shape[:1], self.reach * threat.eps)

    @staticmethod
    def checkpoints(num_steps: int) -> dict[int, int]:
        """Steps after which to adapt, and how many steps each looks back over."""
        period = max(int(0.22 * num_steps), 1)
        shorter = max(int(0.03 * num_steps), 1)
        shortest = max(int(0.06 * num_steps), 1)
        found, step = {}, period
        while step <= num_steps:
            found[step] = period
            period = max(period - shorter, shortest)
            step += period
        return found

    def advance(self) -> None:
        """Moves ``current``."""
        moved = self.threat.ascend(self.clean, self.current, self.grad, self.step_size)
        if self.previous is not None:
            moved = torch.lerp(self.current, moved, 0.75)
            moved.add_(self.current - self.previous, alpha=0.25)
            moved = self.threat.project(self.clean, moved)
        self.previous, self.current = self.current, moved

    def record(self, values: Tensor, grads: Tensor | None) -> None:
        """Learns the objective at ``current``; the gradient unless it is the last."""
        values = finite(values)
        if grads is not None:
            self.grad = grads.nan_to_num()
        if self.value is None:
            self.best_value = self.checked_value = values
            self.best_grad = self.grad
            # Below everything, so that the first step counts as a rise.
            self.value = torch.full_like(values, -torch.inf)
            self.rises = torch.zeros_like(values)
            self.halved = torch.ones_like(values, dtype=torch.bool)
            return
        self.rises += values > self.value
        self.value = values
        better = values > self.best_value
        self.best = choose(better, self.current, self.best)
        self.best_value = torch.where(better, values, self.best_value)
        if grads is not None:
            self.best_grad = choose(better, self.grad, self.best_grad)

    def adapt(self, period: int) -> None:
        """Halves the step sizes that proved too long, after ``period`` steps."""
        oscillates = self.rises <= self.rho * period
        stuck = ~self.halved & (self.best_value <= self.checked_value)
        self.halved = oscillates | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self._return_to_best(self.halved)
        self.checked_value = self.best_value
        self.rises = torch.zeros_like(self.rises)

    def _return_to_best(self, where: Tensor) -> None:
        self.current = choose(where, self.best, self.current)
        self.grad = choose(where, self.best_grad, self.grad)


class SparseSearch(Search):
    """The ascent in l1: which share of the values moves is adapted, too.

    ``share`` is the share of the first steps; None takes it from the start.
    """

    reach = 1.0

    def __init__(
        self, threat: ThreatModel, clean: Tensor, start: Tensor, share: float | None
    ) -> None:
        super().__init__(threat, clean, start, rho=0.0)
        self.size = threat.size(clean)
        if share is None:
            self._adapt_share(start)
        else:
            self.share = clean.new_full(clean.shape[:1], share)
            self.changed = torch.ones_like(self.share) * self.size

    @staticmethod
    def checkpoints(num_steps: int) -> dict[int, int]:
        """See :meth:`Search.checkpoints`."""
        period = max(int(0.04 * num_steps), 1)
        return dict.fromkeys(range(period, num_steps + 1, period), period)

    def advance(self) -> None:
        """See :meth:`Search.advance`."""
        self.current = self.threat.ascend(
            self.clean, self.current, self.grad, self.step_size, self.share
        )

    def adapt(self, period: int) -> None:
        """Follows the number of values that the best iterates change."""
        before = self.changed
        self._adapt_share(self.best)
        sparser = self.changed < 0.95 * before
        first = self.reach * self.threat.eps
        shorter = (self.step_size / 1.5).clamp(first / 10, first)
        self.step_size = torch.where(sparser, first, shorter)
        # A point without a number has no gradient either, and would hold on to it.
        assert self.value is not None
        self._return_to_best(sparser | self.value.isneginf())

    def _adapt_share(self, images: Tensor) -> None:
        self.changed = (images != self.clean).flatten(1).sum(1).to(images)
        self.share = self.changed / self.size / 1.5
