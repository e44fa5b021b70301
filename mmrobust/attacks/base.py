"""What an attack is, and what it may ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..objective import Objective
from ..threat import ThreatModel, to_pixels


class Oracle(Protocol):
    """Values and gradients of an objective on a fixed batch of N images.

    :class:`mmrobust.objective.LossOracle` is the detector's; an attack knows no more
    of the network than this, so it can be tested on functions with a known optimum.
    """

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """Objective (N,) of images (C, H, W)."""
        ...

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Objective (N,) and its gradient with respect to each image."""
        ...


class Attack(ABC):
    """Finds an image in the threat model that makes the objective large.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255, or text like ``'4/255'``.
        objective: see :class:`mmrobust.objective.Objective`.

    Attributes:
        reads: the oracle that the attack asks for: ``'loss'`` for
            :class:`mmrobust.objective.LossOracle` on ``objective``, ``'detections'``
            for :class:`mmrobust.objective.detections.DetectionOracle` (a classifier,
            which has no detections, gets its loss).
        gradient_free: whether it asks for values only.

    Raises:
        ConfigError: if one of them is unknown or out of range.
    """

    reads: str = 'loss'
    gradient_free = False

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        objective: str | Sequence[str] = 'total',
    ) -> None:
        self.threat = ThreatModel(norm=norm, eps=to_pixels(eps, norm=norm))
        self.objective = Objective(objective)

    @abstractmethod
    def perturb(
        self,
        oracle: Oracle,
        images: Sequence[Tensor],
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> list[Tensor]:
        """Returns one adversarial image for every clean one.

        Args:
            oracle: the objective on this batch.
            images: clean images (C, H, W) in pixel units, on the network's device.
            generator: CPU generator for every random draw, or one for each image, so
                that its draws depend on no other image.

        Returns:
            Images of the same shapes inside the threat model.
        """

    def describe(self) -> dict[str, Any]:
        """The settings that define the attack, for the report."""
        return {
            'norm': self.threat.norm,
            'eps': self.threat.eps,
            'step_size': None,
            'num_steps': 0,
            'objective': None,
            'restarts': 1,
            'gradient_free': self.gradient_free,
        }


def one_each(
    generator: torch.Generator | Sequence[torch.Generator], images: Sequence[Tensor]
) -> Sequence[torch.Generator]:
    """A generator for every image, the same one if there is only one."""
    if isinstance(generator, torch.Generator):
        return [generator] * len(images)
    return generator
