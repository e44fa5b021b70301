"""An oracle on original pixels, made of one on the network's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks.base import Oracle


class ResizedOracle:
    """Answers about original pixels what an oracle says about the network's input.

    Counts and everything else are the inner oracle's.

    Args:
        oracle: of the batch's network inputs.
        resizers: one for each image, from :meth:`PicturePipeline.resizer`.
    """

    def __init__(
        self, oracle: Oracle, resizers: Sequence[Callable[[Tensor], Tensor]]
    ) -> None:
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

    def _inputs(self, images: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(self.resizers, images, strict=True)
        return [resizer(image) for resizer, image in pairs]
