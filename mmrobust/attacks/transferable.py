"""PGD whose adversarial images also work on models that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..placement import Placement
from ..registry import ATTACKS
from ..utils.validation import number, positive_int, share
from .base import Generators, Oracle, Preset, one_each, regions_of
from .pgd import PGD


@ATTACKS.register_module()
class TransferPGD(PGD):
    """PGD with momentum, smoothed gradients and diverse inputs, each optional.

    For adversarial images that are made on one model and shown to another. In the
    order in which a gradient meets them:

    - diversity (DI, Xie et al., arXiv 1803.06978): with probability
      ``diversity_prob`` the gradient is taken at a copy of the image that is shrunk
      to a random size and put at a random place of a grey canvas as large as the
      image. Boxes and masks of a detector move along: a loss that looked for objects
      where they were before would punish right answers. The paper enlarges the canvas
      instead, by up to a tenth; here it keeps its size, which some models demand.
    - smoothing (TI, Dong et al., arXiv 1904.02884): the gradient is convolved with a
      Gaussian of ``kernel_size``, whose standard deviation is its radius / sqrt(3),
      with zeros around the image. That stands for gradients at shifted images.
    - momentum (MI, Dong et al., arXiv 1710.06081): the gradient, divided by its mean
      size, is added to ``decay`` times the sum so far.

    Then PGD goes on as ever. With ``decay=0, kernel_size=1, diversity_prob=0`` this is
    PGD. Best iterates are best for the model at hand, not for those to be fooled, so
    unlike in PGD the last one is returned unless ``keep_best`` is set, and runs start
    at the image.

    Cost per image and restart: ``num_steps`` forward and backward passes; with
    ``keep_best`` also what PGD spends on it, and a forward pass for every step in
    which diversity hides an iterate's own value.

    Args:
        norm: ``'linf'`` or ``'l2'``.
        eps, objective: see :class:`Attack`.
        step_size: step in pixel units, by default ``eps / num_steps`` as in the
            papers.
        num_steps: number of steps, at least 1.
        decay: share of the sum of gradients that is kept, 0 for no momentum; the
            paper's is 1.
        kernel_size: side of the Gaussian in pixels, odd, 1 for none; the paper takes
            15 for images of 299 pixels.
        diversity_prob: probability of a diverse input, from 0 to 1; the paper's is
            0.5.
        smallest: least share of its height and width to which a diverse image
            shrinks, above 0 and at most 1.
        random_start, restarts, keep_best, eot: see :class:`PGD`.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """

    transferable = True
    presets = {
        'mim': Preset(
            'all losses, by gradients with momentum, which transfer to other detectors',
            '1710.06081',
        ),
        'dim': Preset(
            'the same with diverse inputs, too',
            '1803.06978',
            {'diversity_prob': 0.5},
        ),
        'tim': Preset(
            'the same as `mim` with a smoothed gradient',
            '1904.02884',
            {'kernel_size': 15},
        ),
    }

    settings = (*PGD.settings, 'decay', 'kernel_size', 'diversity_prob', 'smallest')

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        num_steps: int = 10,
        objective: str | Sequence[str] = 'total',
        decay: float = 1.0,
        kernel_size: int = 1,
        diversity_prob: float = 0.0,
        smallest: float = 0.9,
        random_start: bool = False,
        restarts: int = 1,
        keep_best: bool = False,
        eot: int = 1,
    ) -> None:
        search = (step_size, num_steps, objective, random_start, restarts, keep_best)
        super().__init__(norm, eps, *search, eot)
        if norm == 'l1':
            raise ConfigError(
                "norm='l1' has no transfer variant: choose 'linf' or 'l2', or PGD."
            )
        if step_size is None:
            self.step_size = self.threat.eps / self.num_steps
        self.decay = number(decay, 'decay')
        self.kernel_size = positive_int(kernel_size, 'kernel_size')
        if self.kernel_size % 2 == 0:
            raise ConfigError(
                f'kernel_size={kernel_size!r} has no centre: take an odd number.'
            )
        self.diversity_prob = number(diversity_prob, 'diversity_prob', 1)
        self.smallest = share(smallest, 'smallest')

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        generators = one_each(generator, images)
        return super().perturb(_Gradients(oracle, self, generators), images, generators)


class _Gradients:
    """The oracle with other gradients; its values stay those of the images asked for.

    The variants differ from PGD in what they take for the gradient, and in nothing
    else.
    """

    def __init__(
        self,
        oracle: Oracle,
        attack: TransferPGD,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.oracle, self.attack, self.generators = oracle, attack, generators
        self.regions = getattr(oracle, 'regions', None)
        self.kernel = _gaussian(attack.kernel_size)
        self.asked = 0
        self.sums: list[Tensor] = []

    def value(self, images: Sequence[Tensor]) -> Tensor:
        return self.oracle.value(images)

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        values, grads = self._at_diverse(images)
        # Padding stands for nothing, neither in smoothing nor in the mean size.
        grads = self._inside(grads)
        if len(self.kernel) > 1:
            grads = self._inside([_smooth(grad, self.kernel) for grad in grads])
        if self.attack.decay > 0:
            grads = self._accumulated(grads)
        self.asked += 1
        return values, grads

    def _inside(self, grads: list[Tensor]) -> list[Tensor]:
        pairs = zip(grads, regions_of(self, grads), strict=True)
        return [g if region is None else g * region.to(g) for g, region in pairs]

    def _accumulated(self, grads: list[Tensor]) -> list[Tensor]:
        grads = [
            grad / grad.abs().mean().clamp_min(torch.finfo(grad.dtype).tiny)
            for grad in grads
        ]
        # A restart's steps owe nothing to those of the run before.
        if self.asked % self.attack.num_steps:
            pairs = zip(self.sums, grads, strict=True)
            grads = [self.attack.decay * old + grad for old, grad in pairs]
        self.sums = grads
        return grads

    def _at_diverse(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        places = list(map(self._draw, images, self.generators))
        if not any(places):
            return self.oracle.value_and_grad(images)
        with torch.enable_grad():
            leaves = [image.detach().requires_grad_() for image in images]
            placed = [
                leaf if place is None else place.place(leaf)
                for leaf, place in zip(leaves, places, strict=True)
            ]
        with _moved(self.oracle, places):
            shown = [image.detach() for image in placed]
            values, grads = self.oracle.value_and_grad(shown)
        grads = list(torch.autograd.grad(placed, leaves, grads))
        if self.attack.keep_best:
            values = self.oracle.value(images)
        return values, grads

    def _draw(self, image: Tensor, generator: torch.Generator) -> Placement | None:
        probability = self.attack.diversity_prob
        if probability == 0:
            return None
        chosen = float(torch.rand((), generator=generator)) < probability
        place = Placement.draw(image, self.attack.smallest, generator)
        return place if chosen else None


def _moved(oracle: Oracle, places: Sequence[Placement | None]) -> Any:
    """Moves the oracle's objects, if it has any, while the context lasts."""
    return oracle.moved(places) if hasattr(oracle, 'moved') else nullcontext()


def _gaussian(size: int) -> Tensor:
    """One dimension of the kernel (size,), which is the product of two."""
    if size == 1:
        return torch.ones(1)
    radius = size // 2
    distance = torch.arange(-radius, radius + 1).double()
    bell = torch.exp(-(distance**2) / (2 * radius**2 / 3))
    return bell / bell.sum()


def _smooth(grad: Tensor, kernel: Tensor) -> Tensor:
    """The gradient (C, H, W) convolved with the kernel along both directions."""
    kernel, radius = kernel.to(grad), len(kernel) // 2
    rows = F.conv2d(grad[:, None], kernel.view(1, 1, -1, 1), padding=(radius, 0))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1), padding=(0, radius))[:, 0]
