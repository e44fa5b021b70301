"""Stochastic projected ascent of one variable, whose state can be kept and put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Of the mean, what is left of a gradient after each step.
_DECAY = 0.9


class Ascent:
    """Moves a variable along gradients of which each is of a few images only.

    Steps follow the sign of a mean of the gradients so far, in which the last ones
    count most: the sign of a single one is that of its few images.

    Args:
        variable: where it starts.
        project: brings the variable back to where it has to stay.
        step_size: length of the first step; the others become shorter linearly.
        num_steps: how many there are.

    Attributes:
        done: how many have been made.
    """

    def __init__(
        self,
        variable: Tensor,
        project: Callable[[Tensor], Tensor],
        step_size: float,
        num_steps: int,
    ) -> None:
        self.variable, self.project = variable, project
        self.step_size, self.num_steps, self.done = step_size, num_steps, 0
        self._mean = torch.zeros_like(variable)

    def step(self, grad: Tensor) -> None:
        """Makes a step along a gradient."""
        size = self.step_size * (1 - self.done / self.num_steps)
        self._mean = torch.lerp(grad, self._mean, _DECAY)
        self.variable = self.project(self.variable + size * self._mean.sign())
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the steps to come depend on."""
        return {'variable': self.variable, 'mean': self._mean, 'done': self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what :meth:`state_dict` gave."""
        self.variable, self._mean = state['variable'], state['mean']
        self.done = state['done']
