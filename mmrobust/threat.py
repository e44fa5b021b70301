"""The threat model: which images an adversary may show to the network.

All sizes are in pixel units of 0-255, whatever the network's own normalisation is:
a perturbation lives on the image before the data preprocessor. Functions take one
image of shape (C, H, W), or several of one shape as (N, C, H, W); a ball is taken
around each image by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .errors import ConfigError

NORMS = ('linf', 'l2', 'l1')

# Keeps a zero gradient from turning into NaN in the l2 step; far below any real norm.
_TINY = 1e-12

# Of the projection in l2: none is needed where no value meets the pixel range, three or
# four where pixels and changes are spread as in pictures.
_ROUNDS = 8

# One image, whether a batch dimension comes before it or not.
_IMAGE = (-3, -2, -1)


@dataclass(frozen=True)
class ThreatModel:
    """A norm ball around an image, cut off at the range of valid pixels.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'`` (over all C x H x W values of the image).
        eps: radius in pixel units of 0-255; any finite value from 0 up.
        lo: smallest valid pixel value.
        hi: largest valid pixel value.
        region: which pixels may change, bool (1, H, W), of several images (N, 1, H, W);
            None for all of them. What a pipeline has padded may not.

    Raises:
        ConfigError: for an unknown norm or a radius that is negative or not finite.
    """

    norm: str = 'linf'
    eps: float = 4.0
    lo: float = 0.0
    hi: float = 255.0
    region: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(
                f'norm={self.norm!r} is unknown: choose one of {", ".join(NORMS)}.'
            )
        if not math.isfinite(self.eps) or self.eps < 0:
            raise ConfigError(f'eps={self.eps!r} must be finite and not negative.')

    def within(self, region: Tensor | None, image: Tensor) -> ThreatModel:
        """Returns the model of an image of which only a region (1, H, W) may change."""
        return self if region is None else replace(self, region=region.to(image.device))

    def project(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Brings an image back into the ball around ``clean`` and the pixel range.

        The nearest point of both sets. To scale onto the ball and then clip, as is
        common for l2, would leave part of the radius unused wherever pixels are black
        or white. In float32 l1 is exact up to ``2**-25`` of the largest change for each
        value, and l2 up to rounding unless the sizes of changes and of what the range
        leaves span many orders of magnitude. Values of l2 and l1 are rounded towards
        ``clean``, so that rounding never adds up to a larger perturbation.

        Args:
            clean: the image (C, H, W), or images (N, C, H, W), in [lo, hi].
            adversarial: the image to project, same shape.
        """
        if self.region is not None:
            adversarial = torch.where(self.region, adversarial, clean)
        if self.norm == 'linf':
            # Bounds on the image, not on the difference: with whole-number pixels
            # and radius they are exact, so |result - clean| never exceeds eps.
            low = (clean - self.eps).clamp_(self.lo, self.hi)
            high = (clean + self.eps).clamp_(self.lo, self.hi)
            return adversarial.clamp(low, high)
        delta = adversarial - clean
        room = torch.where(delta > 0, self.hi - clean, clean - self.lo).clamp_min_(0)
        shrink = self._shrink if self.norm == 'l1' else self._scale
        delta = shrink(delta, room)
        moved = clean + delta
        too_far = (moved - clean).abs() > delta.abs()
        moved = torch.where(too_far, torch.nextafter(moved, clean), moved)
        return moved.clamp_(self.lo, self.hi)

    def project_delta(self, delta: Tensor) -> Tensor:
        """Brings a perturbation back into the ball around zero, whatever the pixels."""
        if self.norm == 'linf':
            return delta.clamp(-self.eps, self.eps)
        if self.norm == 'l1':
            return self._shrink(delta, delta.abs())
        return delta * (self.eps / _length(delta).clamp_min(_TINY)).clamp_max(1.0)

    def _shrink(self, delta: Tensor, room: Tensor) -> Tensor:
        """Nearest perturbation of l1 norm at most eps, each value at most ``room``.

        It is ``sign(delta) * min(max(|delta| - m, 0), room)`` with the smallest m >= 0
        for which the sum fits (Croce and Hein, arXiv 2103.01208, Prop. 2.1). m is found
        by a fixed number of bisections, so that the host never waits for a GPU. Between
        the ends of the last bracket the sum is linear but for the values that reach 0
        or ``room`` just there, so mixing the two ends hits the radius.
        """
        size = delta.abs()
        kept = torch.empty_like(size)

        def keep(multiplier: Tensor) -> Tensor:
            torch.sub(size, multiplier, out=kept).clamp_(min=0)
            return torch.minimum(kept, room, out=kept)

        high = size.amax(_IMAGE, keepdim=True)
        low = torch.zeros_like(high)
        for _ in range(2 - round(math.log2(torch.finfo(size.dtype).eps))):
            middle = (low + high) / 2
            too_long = keep(middle).sum(_IMAGE, keepdim=True) > self.eps
            low = torch.where(too_long, middle, low)
            high = torch.where(too_long, high, middle)
        longer = keep(low).clone()
        shorter = keep(high)
        sums = [part.sum(_IMAGE, keepdim=True) for part in (longer, shorter)]
        # At most 1: with m = 0 the sum may fit as it is.
        share = (self.eps - sums[1]) / (sums[0] - sums[1]).clamp_min(_TINY)
        return torch.lerp(shorter, longer, share.clamp(0, 1)).copysign_(delta)

    def _scale(self, delta: Tensor, room: Tensor) -> Tensor:
        """Nearest perturbation of l2 norm at most eps, each value at most ``room``.

        It is ``factor * delta``, cut off at ``room``, with the largest factor up to 1
        for which the norm fits. Every round solves for the factor as if only those
        values were cut off that the last one cut off: too few, so that the factor rises
        towards the right one and any number of rounds stays in the ball.
        """
        size, none = delta.abs(), torch.zeros_like(delta)
        factor = (self.eps / _length(size).clamp_min(_TINY)).clamp_max(1.0)
        for _ in range(_ROUNDS):
            cut = factor * size >= room
            left = self.eps**2 - _length(torch.where(cut, room, none)) ** 2
            free = _length(torch.where(cut, none, size)).clamp_min(_TINY)
            better = left.clamp_min(0).sqrt() / free
            factor = torch.maximum(factor, better).clamp_max(1.0)
        return torch.minimum(factor * size, room).copysign_(delta)

    def step(
        self,
        adversarial: Tensor,
        grad: Tensor,
        step_size: float | Tensor,
        share: float | Tensor = 0.01,
    ) -> Tensor:
        """Moves along the steepest ascent direction of the norm, without projecting.

        By ``step_size * sign(grad)`` for linf, ``step_size * grad / ||grad||_2`` for
        l2, ``step_size / k * sign(grad)`` on the k largest gradients for l1. A zero
        gradient leaves the image where it is.

        Args:
            adversarial: current image (C, H, W), or images (N, C, H, W).
            grad: gradient of the objective with respect to it.
            step_size: length of the step in pixel units, for several images also one
                each, (N,).
            share: l1 only, the share of the values of :attr:`region` that move (at
                least one; all that equal the smallest of them too), for several images
                also one each, (N,). The very steepest step would change one value; 0.01
                is the sparsity of SLIDE (arXiv 1904.13000, 99th percentile).
        """
        if isinstance(step_size, Tensor):
            step_size = step_size.view(-1, 1, 1, 1)
        if self.norm == 'linf':
            # One pass over the image; the product is exact either way.
            if isinstance(step_size, Tensor):
                return torch.addcmul(adversarial, step_size, grad.sign())
            return adversarial.add(grad.sign(), alpha=step_size)
        if self.norm == 'l1':
            grad = _largest(grad, share, self.size(grad)).sign_()
            count = grad.abs().sum(_IMAGE, keepdim=True).clamp_min(1)
            return adversarial + grad * (step_size / count)
        # Scaled by its largest entry first: squares of tiny gradients underflow.
        largest = grad.abs().amax(_IMAGE, keepdim=True)
        grad = grad / largest.clamp_min(torch.finfo(grad.dtype).tiny)
        return adversarial + step_size * grad / _length(grad).clamp_min(_TINY)

    def ascend(
        self,
        clean: Tensor,
        adversarial: Tensor,
        grad: Tensor,
        step_size: float | Tensor,
        share: float | Tensor = 0.01,
    ) -> Tensor:
        """Takes a step of projected gradient ascent around ``clean``.

        Of l2 and l1, values that may not change take no part in the :meth:`step`: those
        outside of the region, and those that the pixel range blocks.
        """
        if self.norm != 'linf':  # there it would make no difference
            grad = self.without_blocked(adversarial, grad)
        return self.project(clean, self.step(adversarial, grad, step_size, share))

    def without_blocked(self, adversarial: Tensor, grad: Tensor) -> Tensor:
        """The gradient, 0 outside of the region and where it leads out of the range.

        A step that ignores this spends its length on values that the range takes back:
        in l1, whose steps are sparse, all of it and for ever; in l2 a part; in linf
        nothing, as each value has the whole length for itself.
        """
        blocked = torch.where(grad > 0, adversarial >= self.hi, adversarial <= self.lo)
        if self.region is not None:
            blocked |= ~self.region
        return grad.masked_fill(blocked, 0)

    def random_start(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Draws an image uniformly from the ball around one (C, H, W), and clips it.

        By a CPU generator, so that a seed gives the same start on every device.
        """
        if self.norm == 'linf':
            noise = torch.rand(clean.shape, generator=generator) * 2 - 1
            return self.project(clean, clean + self.eps * noise.to(clean))
        radius = float(torch.rand((), generator=generator, dtype=torch.float64))
        radius = self.eps * radius ** (1 / int(self.size(clean)))
        return self.project(clean, clean + self._direction(clean, generator) * radius)

    def random_boundary(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Draws an image as far away as the ball allows, in a random direction.

        linf: every value moved by +eps or -eps; l2 and l1: a uniform point of the
        sphere of radius eps. Clipped to valid pixels.
        """
        if self.norm == 'linf':
            sign = torch.randint(0, 2, clean.shape, generator=generator) * 2 - 1
            return self.project(clean, clean + self.eps * sign.to(clean))
        return self.project(clean, clean + self._direction(clean, generator) * self.eps)

    def distance(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Size of the perturbation in pixel units: a scalar, or (N,) of N images."""
        delta = adversarial - clean
        if self.norm == 'linf':
            return delta.abs().amax(_IMAGE)
        if self.norm == 'l1':
            return delta.abs().sum(_IMAGE)
        return _length(delta).flatten(-3).squeeze(-1)

    def size(self, clean: Tensor) -> int | Tensor:
        """Returns how many values of an image may change, or 1; of several (N,)."""
        if self.region is None:
            return clean[0].numel() if clean.dim() == 4 else clean.numel()
        return (self.region.sum(_IMAGE) * clean.shape[-3]).clamp_min(1)

    def window(self) -> tuple[tuple[slice, ...], ThreatModel]:
        """The smallest window around the region of one image, as an index.

        Returns:
            The window, and the threat model of the image inside of it.
        """
        if self.region is None or not self.region.any():
            return (slice(None),), self
        found = [slice(None)]
        for axis in (2, 1):
            places = self.region.any(axis).flatten().nonzero().flatten().tolist()
            found.append(slice(places[0], places[-1] + 1))
        inside = self.region[tuple(found)]
        return tuple(found), replace(self, region=None if inside.all() else inside)

    def _direction(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform point of the unit sphere of l2 or l1, inside of the region."""
        direction = torch.randn(clean.shape, generator=generator)
        if self.norm == 'l1':
            # Sizes that are exponential and then divided by their sum are uniform.
            size = torch.empty(clean.shape).exponential_(generator=generator)
            direction = self.inside(size.copysign_(direction))
            return (direction / direction.abs().sum().clamp_min(_TINY)).to(clean)
        direction = self.inside(direction.to(clean))
        return direction / _length(direction).clamp_min(_TINY)

    def inside(self, delta: Tensor) -> Tensor:
        """Returns a change or gradient (C, H, W) that is 0 outside of the region."""
        return delta if self.region is None else delta * self.region.to(delta.device)


def _length(delta: Tensor) -> Tensor:
    """l2 norm of each image, (..., 1, 1, 1)."""
    return torch.linalg.vector_norm(delta, dim=_IMAGE, keepdim=True)


def _largest(grad: Tensor, share: float | Tensor, among: int | Tensor) -> Tensor:
    """The values with the largest size, a share of so many; zeros elsewhere."""
    size = grad.abs()
    ranked = size.flatten(-3).sort(-1).values
    count = ranked.shape[-1]
    if not isinstance(share, Tensor):
        share = ranked.new_full(ranked.shape[:-1], share)
    place = ((1 - share) * among + (count - among)).clamp(0, count - 1).long()
    least = ranked.gather(-1, place.unsqueeze(-1))
    return torch.where(size >= least[..., None, None], grad, torch.zeros_like(grad))
