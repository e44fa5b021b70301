"""The threat model: which images an adversary may show to the network.

All sizes are in pixel units of 0-255, whatever the network's own normalisation is:
a perturbation lives on the image before the data preprocessor. Functions take one
unpadded image of shape (C, H, W); a ball is taken around that image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError

NORMS = ('linf', 'l2')

# Keeps a zero gradient from turning into NaN in the l2 step; far below any real norm.
_TINY = 1e-12


def to_pixels(value: float | int | str, name: str = 'eps') -> float:
    """Reads a perturbation size as pixel units of 0-255.

    Args:
        value: a number in pixel units (``4``), or a fraction of the full range as
            text (``'4/255'`` means 4 pixel units, ``'0.5/255'`` half a unit).
        name: how the setting is called in the error message.

    Returns:
        The size in pixel units, finite and not negative.

    Raises:
        ConfigError: if the value is no number, negative, not finite, or a number
            between 0 and 1, which is nearly always the [0, 1] scale by mistake.
    """
    advice = f"write pixel units of 0-255, like {name}=4, or the text '4/255'"
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str) and '/' in value:
            numerator, denominator = (float(part) for part in value.split('/'))
            pixels, fraction = 255 * numerator / denominator, True
        else:
            pixels, fraction = float(value), False
    except (TypeError, ValueError, ZeroDivisionError):
        raise ConfigError(f'{name}={value!r} is not a size: {advice}.') from None
    if not math.isfinite(pixels) or pixels < 0:
        raise ConfigError(f'{name}={value!r} is negative or not finite: {advice}.')
    if 0 < pixels < 1 and not fraction:
        meant = pixels * 255
        raise ConfigError(
            f'{name}={value!r} is below one pixel unit and looks like the [0, 1] '
            f"scale: write {name}={meant:.3g} if that was meant, or '{pixels:g}/255' "
            f'for really {pixels:g} pixel units.'
        )
    return pixels


@dataclass(frozen=True)
class ThreatModel:
    """A norm ball around an image, cut off at the range of valid pixels.

    Args:
        norm: ``'linf'`` or ``'l2'`` (over all C x H x W values of the image).
        eps: radius in pixel units of 0-255; any finite value from 0 up.
        lo: smallest valid pixel value.
        hi: largest valid pixel value.

    Raises:
        ConfigError: for an unknown norm or a radius that is negative or not finite.
    """

    norm: str = 'linf'
    eps: float = 4.0
    lo: float = 0.0
    hi: float = 255.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(
                f'norm={self.norm!r} is unknown: choose one of {", ".join(NORMS)}.'
            )
        if not math.isfinite(self.eps) or self.eps < 0:
            raise ConfigError(f'eps={self.eps!r} must be finite and not negative.')

    def project(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Brings an image back into the ball around ``clean`` and the pixel range.

        Exact for linf. For l2 the perturbation is first scaled onto the ball and
        then clipped; clipping moves every value towards ``clean``, so the result
        lies in both sets.

        Args:
            clean: the image (C, H, W) in [lo, hi].
            adversarial: the image to project, same shape.

        Returns:
            The projected image, same shape.
        """
        if self.norm == 'linf':
            # Bounds on the image, not on the difference: with whole-number pixels
            # and radius they are exact, so |result - clean| never exceeds eps.
            low = (clean - self.eps).clamp_min(self.lo)
            high = (clean + self.eps).clamp_max(self.hi)
            return torch.minimum(torch.maximum(adversarial, low), high)
        delta = self.project_delta(adversarial - clean)
        return (clean + delta).clamp(self.lo, self.hi)

    def project_delta(self, delta: Tensor) -> Tensor:
        """Brings a perturbation back into the ball around zero, whatever the pixels."""
        if self.norm == 'linf':
            return delta.clamp(-self.eps, self.eps)
        return delta * (self.eps / delta.norm().clamp_min(_TINY)).clamp_max(1.0)

    def step(self, adversarial: Tensor, grad: Tensor, step_size: float) -> Tensor:
        """Moves along the steepest ascent direction of the norm, without projecting.

        Args:
            adversarial: current image (C, H, W).
            grad: gradient of the objective with respect to it; a zero gradient
                leaves the image where it is.
            step_size: length of the step in pixel units.

        Returns:
            The moved image: ``+ step_size * sign(grad)`` for linf,
            ``+ step_size * grad / ||grad||_2`` for l2.
        """
        if self.norm == 'linf':
            return adversarial + step_size * grad.sign()
        # Scaled by its largest entry first: squares of tiny gradients underflow.
        grad = grad / grad.abs().amax().clamp_min(torch.finfo(grad.dtype).tiny)
        return adversarial + step_size * grad / grad.norm().clamp_min(_TINY)

    def random_start(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Draws an image uniformly from the ball, then clips it to valid pixels.

        Args:
            clean: the image (C, H, W).
            generator: CPU generator, so that a seed gives the same start on every
                device.
        """
        if self.norm == 'linf':
            noise = torch.rand(clean.shape, generator=generator) * 2 - 1
            return self.project(clean, clean + self.eps * noise.to(clean))
        radius = float(torch.rand((), generator=generator, dtype=torch.float64))
        radius = self.eps * radius ** (1 / clean.numel())
        return self.project(clean, clean + self._direction(clean, generator) * radius)

    def random_boundary(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Draws an image as far away as the ball allows, in a random direction.

        linf: every value moved by +eps or -eps; l2: a uniform direction of length
        eps. Clipped to valid pixels.
        """
        if self.norm == 'linf':
            sign = torch.randint(0, 2, clean.shape, generator=generator) * 2 - 1
            return self.project(clean, clean + self.eps * sign.to(clean))
        return self.project(clean, clean + self._direction(clean, generator) * self.eps)

    def distance(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Size of the perturbation in this norm, a scalar in pixel units."""
        delta = adversarial - clean
        return delta.abs().amax() if self.norm == 'linf' else delta.norm()

    @staticmethod
    def _direction(clean: Tensor, generator: torch.Generator) -> Tensor:
        direction = torch.randn(clean.shape, generator=generator).to(clean)
        return direction / direction.norm().clamp_min(_TINY)
