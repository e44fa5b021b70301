"""Functions of images with known values, as oracles for attacks."""

from __future__ import annotations

import torch
from torch import Tensor


class Recorder:
    """An oracle for a function of one image that remembers what it was asked."""

    def __init__(self, function):
        self.function, self.values, self.grads = function, 0, 0
        self.points: list[Tensor] = []  # of the first image
        self.seen: list[float] = []  # its values

    def value(self, images):
        self.values += 1
        values = torch.stack([self.function(image) for image in images]).detach()
        self._remember(images, values)
        return values

    def value_and_grad(self, images):
        self.grads += 1
        leaves = [image.detach().clone().requires_grad_() for image in images]
        values = torch.stack([self.function(leaf) for leaf in leaves])
        self._remember(leaves, values)
        return values.detach(), list(torch.autograd.grad(values.sum(), leaves))

    def _remember(self, images, values):
        self.points.append(images[0].detach())
        self.seen.append(float(values[0]))


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape or (3, 6, 6), generator=generator(1))


def wavy(image: Tensor) -> Tensor:
    weights = normal(*image.shape).double()
    return torch.sin(image.double() * weights / 10).sum()
