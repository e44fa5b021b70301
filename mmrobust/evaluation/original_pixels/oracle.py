"""An oracle on original pixels, made of one on the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...attacks.diversity import Placement
from .resize import Resizer


class ResizedOracle:
    """Answers about original pixels what an oracle says about the network's input.

    Counts and everything else are the inner oracle's.

    Args:
        oracle: of the batch's network inputs.
        resizers: one for each image, from :meth:`PicturePipeline.resizer`.
    """

    def __init__(self, oracle: Any, resizers: Sequence[Resizer]) -> None:
        self.oracle = oracle
        self.resizers = list(resizers)

    def __getattr__(self, name: str) -> Any:
        if name == 'oracle':  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.oracle, name)

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """Objective (N,) of pictures (C, H, W) in original pixels."""
        with torch.no_grad():
            return self.oracle.value(self._inputs(images))

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Objective (N,), and its gradient with respect to the original pixels."""
        with torch.enable_grad():
            leaves = [image.detach().requires_grad_() for image in images]
            inputs = self._inputs(leaves)
        values, grads = self.oracle.value_and_grad([each.detach() for each in inputs])
        # Image by image: resizing has no memory, and each is let go at once.
        pulled = [
            torch.autograd.grad(each, leaf, grad)[0]
            for each, leaf, grad in zip(inputs, leaves, grads, strict=True)
        ]
        return values, pulled

    @property
    def samples(self) -> Any:
        """The inner oracle's, in the frame of the network's input."""
        return self.oracle.samples

    @samples.setter
    def samples(self, samples: Any) -> None:
        self.oracle.samples = samples

    def on_input(
        self, placements: Sequence[Placement | None]
    ) -> list[Placement | None]:
        """Where pictures that lie somewhere on their canvas lie on the input."""
        found: list[Placement | None] = []
        for place, resizer in zip(placements, self.resizers, strict=True):
            if place is None:
                found.append(None)
                continue
            size = resizer.geometry
            pairs = zip(size.resized, size.original, strict=True)
            vertical, horizontal = (new / old for new, old in pairs)
            found.append(place.resized((vertical, horizontal), size.input))
        return found

    def _inputs(self, images: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(self.resizers, images, strict=True)
        return [resizer(image) for resizer, image in pairs]
