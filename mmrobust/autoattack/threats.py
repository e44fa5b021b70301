"""The norm balls of an AutoAttack evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..threat import to_pixels

PACKAGE_NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}

# 4/255, 2 and 75 in [0, 1] terms: the radii of arXiv 2303.01870 on ImageNet.
DEFAULT_EPS = {'linf': 4.0, 'l2': 510.0, 'l1': 19125.0}

# What float32 sums over an image's pixels may be off by, relative to the radius.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Ball:
    """A norm ball of one radius, cut off at the range of valid pixels.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``, over all C x H x W values of an image.
        eps: radius in pixel units of 0-255.
    """

    norm: str
    eps: float

    @classmethod
    def read(cls, norm: Any, eps: float | str | None = None) -> Ball:
        """Reads a setting.

        Args:
            norm: name of the norm.
            eps: radius in pixel units, or text like ``'4/255'``; by default 4 for
                linf, 510 for l2 and 19125 for l1.

        Raises:
            ConfigError: for an unknown norm, or a radius that is no positive size.
        """
        if norm not in PACKAGE_NORMS:
            raise ConfigError(
                f'norm={norm!r} is unknown: choose from {", ".join(PACKAGE_NORMS)}.'
            )
        radius = DEFAULT_EPS[norm] if eps is None else to_pixels(eps, norm=norm)
        if radius == 0:
            raise ConfigError('eps=0 leaves AutoAttack nothing to do: give a radius.')
        return cls(norm, radius)

    @property
    def name(self) -> str:
        """Short and unique, fit for a file: ``'linf-4'``."""
        return f'{self.norm}-{self.eps:.10g}'

    @property
    def label(self) -> str:
        """For tables, in both units: ``'linf 4 (4/255)'``, ``'l2 510 (2)'``."""
        small = f'{self.eps:g}/255' if self.norm == 'linf' else f'{self.unit_eps:g}'
        return f'{self.norm} {self.eps:g} ({small})'

    @property
    def unit_eps(self) -> float:
        """The radius for images in [0, 1]."""
        return self.eps / 255

    def distances(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Sizes (N,) of the perturbations in the units of the images, in float64."""
        delta = (adversarial.double() - clean.double()).flatten(1).abs()
        if self.norm == 'linf':
            return delta.amax(dim=1)
        return delta.norm(dim=1) if self.norm == 'l2' else delta.sum(dim=1)

    def contains(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Whether each image (N, C, H, W) in [0, 1] is an allowed one, bool (N,).

        NaN is not. Rounding in float32 is forgiven.
        """
        radius = self.unit_eps * (1 + _TOLERANCE) + 1e-7
        inside = self.distances(clean, adversarial) <= radius
        flat = adversarial.flatten(1)
        return inside & (flat >= 0).all(dim=1) & (flat <= 1).all(dim=1)


def read_balls(threats: Sequence[dict[str, Any]] | None) -> list[Ball]:
    """Reads the setting ``threats`` of the loop; linf with radius 4 by default.

    Raises:
        ConfigError: if it is empty, names one twice or has unknown keys.
    """
    balls = []
    for threat in [{'norm': 'linf'}] if threats is None else threats:
        if not isinstance(threat, dict) or not {'norm'} <= set(threat) <= {
            'norm',
            'eps',
        }:
            raise ConfigError(
                f"threats holds {threat!r}: write dict(norm='linf', eps=4)."
            )
        balls.append(Ball.read(threat['norm'], threat.get('eps')))
    if not balls:
        raise ConfigError("threats is empty: write [dict(norm='linf', eps=4)].")
    if len(set(balls)) < len(balls):
        raise ConfigError('threats names one norm with the same eps twice.')
    return balls
