"""Drawn transformations: how a printed patch is seen from elsewhere, in other light.

Expectation over transformations is after Athalye et al. (arXiv 1707.07397); what is
varied is what AdvPatch (arXiv 1904.08653) varies, and perspective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch

from ..errors import ConfigError
from ..utils.validation import did_you_mean, number

_UNIT = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True)
class Draw:
    """One way in which a patch is seen.

    Args:
        scale: factor of its sides.
        angle: by which it is turned around its centre, degrees, counterclockwise.
        corners: where its corners (-1, -1), (1, -1), (1, 1), (-1, 1) move before it is
            scaled and turned, as (x, y) in half sides.
        gain: factor of its contrast, around mid-grey.
        offset: what is added to its values, pixel units of 0-255.
        blur: standard deviation of the Gaussian blur of what is seen, pixels.
        noise: standard deviation of the noise on it, pixel units.
        seed: of this noise.
    """

    scale: float = 1.0
    angle: float = 0.0
    corners: Sequence[tuple[float, float]] = _UNIT
    gain: float = 1.0
    offset: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0

    @property
    def moves(self) -> bool:
        """Whether pixels lie elsewhere than in the texture, or are mixed."""
        still = self.scale == 1 and self.angle % 360 == 0 and self.blur == 0
        return not still or tuple(self.corners) != _UNIT

    def matrix(self, height: int, width: int) -> np.ndarray:
        """The homography (3, 3) from the unit square to pixels around the centre.

        Args:
            height: of the place, pixels; the unit square reaches from -1 to 1.
            width: of the place, pixels.
        """
        turn = math.radians(self.angle)
        # y points down, so that this is counterclockwise on a screen.
        cos, sin = self.scale * math.cos(turn), self.scale * math.sin(turn)
        turned = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        return turned @ np.diag([width / 2, height / 2, 1]) @ homography(self.corners)


IDENTITY = Draw()


@dataclass(frozen=True)
class Transformations:
    """How much the ways may differ in which a patch is seen; 0 for not at all.

    Args:
        scale: sides are multiplied by a uniform factor from ``1 - scale`` to
            ``1 + scale``; below 1.
        rotation: degrees, uniform up to this in both directions; at most 180.
        perspective: every corner moves by a uniform part of the sides up to this in
            both directions; below 0.5, so that no side turns around.
        brightness: pixel units of 0-255 that are added, uniform up to this in both
            directions.
        contrast: the contrast is multiplied by a uniform factor from ``1 - contrast``
            to ``1 + contrast``; at most 1.
        blur: standard deviation of a Gaussian blur, pixels, uniform from 0 to this.
        noise: standard deviation of Gaussian noise, pixel units.

    Raises:
        ConfigError: for a strength that is out of range.
    """

    scale: float = 0.0
    rotation: float = 0.0
    perspective: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        largest = {'scale': 0.99, 'rotation': 180, 'perspective': 0.49, 'contrast': 1}
        for field in fields(self):
            limit = largest.get(field.name, 255)
            number(getattr(self, field.name), field.name, limit)

    @classmethod
    def read(cls, value: Mapping[str, float] | str | None) -> Transformations:
        """Reads strengths by their names.

        Args:
            value: a mapping, text like ``'rotation=20,blur=1'``, ``'printed'`` for the
                usual strengths of a patch on paper, or None for none.

        Raises:
            ConfigError: for an unknown name, or a strength that is out of range.
        """
        if value is None:
            return cls()
        if value == 'printed':
            return PRINTED
        given: dict[str, float | str] = {}
        if isinstance(value, Mapping):
            given = dict(value)
        else:
            for part in str(value).split(','):
                name, _, strength = part.partition('=')
                given[name.strip()] = strength
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(
                    f'{name!r} is no transformation of patches'
                    f'{did_you_mean(name, known)}: give strengths like '
                    f"'rotation=20,blur=1', of {', '.join(known)}, or 'printed'."
                )
        return cls(**{name: number(each, name) for name, each in given.items()})

    def describe(self) -> dict[str, float]:
        """Returns the strengths that are not 0."""
        return {name: each for name, each in asdict(self).items() if each}

    def __bool__(self) -> bool:
        return bool(self.describe())

    def draw(self, generator: torch.Generator) -> Draw:
        """Draws a way to see a patch, always with as many numbers of the generator."""
        drawn = torch.rand(14, generator=generator, dtype=torch.float64).tolist()
        both = [2 * value - 1 for value in drawn]
        moves = [2 * self.perspective * value for value in both[4:12]]
        corners = tuple(
            (x + dx, y + dy)
            for (x, y), dx, dy in zip(_UNIT, moves[::2], moves[1::2], strict=True)
        )
        return Draw(
            scale=1 + self.scale * both[0],
            angle=self.rotation * both[1],
            corners=corners,
            gain=1 + self.contrast * both[2],
            offset=self.brightness * both[3],
            blur=self.blur * drawn[12],
            noise=self.noise,
            seed=int(drawn[13] * 2**53),
        )


# Rotation, contrast, brightness and noise are those of AdvPatch's code, whose noise is
# uniform up to 0.1 of the range and has this standard deviation; it has no perspective
# and no blur.
PRINTED = Transformations(
    scale=0.1,
    rotation=20,
    perspective=0.05,
    brightness=25.5,
    contrast=0.2,
    blur=1,
    noise=14.7,
)


def homography(corners: Sequence[tuple[float, float]]) -> np.ndarray:
    """The homography (3, 3) that moves the corners of the unit square to others.

    Args:
        corners: where (-1, -1), (1, -1), (1, 1) and (-1, 1) go, (x, y).
    """
    rows, wanted = [], []
    for (x, y), (u, v) in zip(_UNIT, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    found = np.linalg.solve(np.array(rows), np.array(wanted))
    return np.append(found, 1).reshape(3, 3)
