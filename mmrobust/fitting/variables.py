"""What is fitted: how it is shown on an image, where it may go, and how it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..attacks import Patch, pasted, regions_of
from ..threat import ThreatModel
from ..universal import (
    PATCH,
    PERTURBATION,
    Canvas,
    write_perturbation,
    write_picture,
)

_GREY = 127.5


class Variable(ABC):
    """What a fit moves, (3, H, W) in pixel units and the loaders' channel order.

    Args:
        size: its height and width.
        radius: how far it may go from where it starts.
    """

    kind: ClassVar[str]

    def __init__(self, size: Sequence[int], radius: float) -> None:
        self.size, self.radius = tuple(size), radius

    @abstractmethod
    def start(self) -> Tensor:
        """Returns where it starts."""

    @abstractmethod
    def project(self, values: Tensor) -> Tensor:
        """Brings it back to where it has to stay."""

    @abstractmethod
    def shown(
        self, values: Tensor, oracle: Any, image: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Returns an image with it, differentiable in it.

        Args:
            values: the variable.
            oracle: of the image, which knows its regions and objects.
            image: (C, H, W).
            generator: of all draws.
        """

    def check(self, oracle: Any, image: Tensor) -> None:  # noqa: B027
        """Makes sure that it has room on an image (C, H, W).

        Raises:
            ConfigError: if not.
        """

    def held_back(self, values: Tensor) -> Tensor:
        """Returns what is taken off the direction of a step, whose mean size is 1."""
        return torch.zeros_like(values)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns what its file says of it."""

    @abstractmethod
    def write(self, path: Path, values: Tensor, settings: Mapping[str, Any]) -> str:
        """Writes it, and returns the file's hash."""


class Perturbation(Variable):
    """One perturbation for all images, in a ball of linf, see :class:`.Universal`."""

    kind = PERTURBATION

    def __init__(self, size: Sequence[int], radius: float) -> None:
        super().__init__(size, radius)
        self._canvas, self._ball = Canvas(size), ThreatModel(eps=radius)

    def start(self) -> Tensor:
        """See :meth:`Variable.start`: nothing is added."""
        return torch.zeros(3, *self.size)

    def project(self, values: Tensor) -> Tensor:
        """See :meth:`Variable.project`."""
        return values.clamp(-self.radius, self.radius)

    def shown(
        self, values: Tensor, oracle: Any, image: Tensor, generator: torch.Generator
    ) -> Tensor:
        """See :meth:`Variable.shown`."""
        (region,) = regions_of(oracle, [image])
        return self._canvas.added(values, image, self._ball.within(region, image))

    def settings(self) -> dict[str, Any]:
        """See :meth:`Variable.settings`."""
        return {'norm': 'linf', 'eps': self.radius}

    def write(self, path: Path, values: Tensor, settings: Mapping[str, Any]) -> str:
        """See :meth:`Variable.write`."""
        return write_perturbation(path, values, self.radius, settings)


class Texture(Variable):
    """A texture of any values, pasted at the places of a patch.

    Args:
        size: its height and width, whatever that of the places.
        patch: where it lies, and how it is drawn: anew for every image and step.
        smooth: how much rough textures are held back: the length of the gradient of the
            total variation beside that of the objective.
    """

    kind = PATCH

    def __init__(self, size: Sequence[int], patch: Patch, smooth: float = 0.0) -> None:
        super().__init__(size, _GREY)
        self._patch, self._smooth = patch, smooth

    def start(self) -> Tensor:
        """See :meth:`Variable.start`: grey."""
        return torch.full((3, *self.size), _GREY)

    def project(self, values: Tensor) -> Tensor:
        """See :meth:`Variable.project`."""
        return values.clamp(0, 255)

    def shown(
        self, values: Tensor, oracle: Any, image: Tensor, generator: torch.Generator
    ) -> Tensor:
        """See :meth:`Variable.shown`."""
        (found,) = pasted(self._patch, lambda _: values, oracle, [image], generator)
        return found

    def check(self, oracle: Any, image: Tensor) -> None:
        """See :meth:`Variable.check`."""
        self._patch.check_fits(oracle, [image])

    def held_back(self, values: Tensor) -> Tensor:
        """See :meth:`Variable.held_back`: the total variation of each channel."""
        with torch.enable_grad():
            leaf = values.detach().requires_grad_()
            down, right = leaf.diff(dim=1).abs().sum(), leaf.diff(dim=2).abs().sum()
            (grad,) = torch.autograd.grad(down + right, leaf)
        return self._smooth * normalised(grad)

    def settings(self) -> dict[str, Any]:
        """See :meth:`Variable.settings`."""
        return {'patch': self._patch.describe()['patch'], 'smooth': self._smooth}

    def write(self, path: Path, values: Tensor, settings: Mapping[str, Any]) -> str:
        """See :meth:`Variable.write`."""
        return write_picture(path, values.round(), settings)


def normalised(grad: Tensor) -> Tensor:
    """Divides a gradient by the mean size of its values; 0 stays 0."""
    size = grad.abs().mean()
    return grad / size if size > 0 else grad
