"""Measures where the pipeline of an image puts each point of its picture.

Two pictures in which brightness rises from left to right and from top to bottom go
through the image's own pipeline. What comes out says of each pixel where it was, and
least squares make one affine map of it: scales, shifts, flips, crops and turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Brightness of the last row or column; the first has 0.
_TOP = 254
# Rounding before and after interpolation, in the same unit.
_ROUNDING = 1.5
# Share of the pixels that may be off, as those at the edge of a small picture are.
_ODD = 0.1
# Pixels that the map is fitted to at most.
_MOST = 20_000


def ramp(axis: int, picture: np.ndarray) -> np.ndarray:
    """Returns a picture of a given one's shape and type, whose brightness rises.

    Args:
        axis: 1 for a rise from left to right, 0 for one from top to bottom.
        picture: (H, W) or (H, W, C).
    """
    size = picture.shape[axis]
    line = np.linspace(0, _TOP, size) if size > 1 else np.zeros(1)
    shape = [1] * picture.ndim
    shape[axis] = size
    rising = np.broadcast_to(line.reshape(shape), picture.shape)
    whole = np.issubdtype(picture.dtype, np.integer)
    return (rising.round() if whole else rising).astype(picture.dtype)


@dataclass(frozen=True)
class Affine:
    """A map of points (x, y) in pixels, whose first pixel reaches from 0 to 1."""

    matrix: np.ndarray  # (2, 2)
    shift: np.ndarray  # (2,)

    @classmethod
    def scaling(cls, x: float, y: float) -> Affine:
        """Returns the map of a resize to (x, y) times the size."""
        return cls(np.diag([float(x), float(y)]), np.zeros(2))

    def points(self, points: np.ndarray) -> np.ndarray:
        """Maps points (..., 2)."""
        return np.asarray(points, dtype=float) @ self.matrix.T + self.shift

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Maps boxes (N, 4) of corners (x1, y1, x2, y2) to the boxes around them."""
        flat = np.asarray(boxes, dtype=float).reshape(-1, 4)
        corners = flat[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        mapped = self.points(corners)
        return np.concatenate([mapped.min(1), mapped.max(1)], axis=1)

    def inverse(self) -> Affine:
        """Returns the map back."""
        back = np.linalg.inv(self.matrix)
        return Affine(back, -back @ self.shift)

    def near(self, other: Affine, width: int, height: int, pixels: float) -> bool:
        """Returns whether two maps put a picture's corners at the same places."""
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]])
        gaps = self.points(corners) - other.points(corners)
        return bool(np.abs(gaps).max() <= pixels)


def fit(
    columns: np.ndarray,
    rows: np.ndarray,
    region: np.ndarray,
    picture_size: Sequence[int],
) -> Affine | None:
    """Returns the map from a picture to what a pipeline made of it.

    Args:
        columns: (h, w) what the pipeline made of the picture that rises to the right,
            in the brightness that it had before.
        rows: (h, w) the same of the one that rises downwards.
        region: (h, w) bool, the pixels that depend on the picture.
        picture_size: height and width of the picture, at least 2.

    Returns:
        None if no affine map explains what came out.
    """
    height, width = picture_size
    places = np.argwhere(region)
    if len(places) < 3:
        return None
    if len(places) > _MOST:
        places = np.random.default_rng(0).choice(places, _MOST, replace=False)
    some = places
    seen = np.stack([columns[tuple(some.T)], rows[tuple(some.T)]], axis=1)
    steps = _TOP / np.array([width - 1, height - 1])
    was = seen.astype(float) / steps + 0.5
    now = np.concatenate([some[:, ::-1] + 0.5, np.ones((len(some), 1))], axis=1)
    good = np.ones(len(some), bool)
    for _ in range(3):  # without what is off the map of the others
        if good.sum() < 3 or np.linalg.matrix_rank(now[good]) < 3:
            return None
        solution = np.linalg.lstsq(now[good], was[good], rcond=None)[0]
        off = np.abs(now @ solution - was) * steps
        good = (off <= _ROUNDING).all(1)
    if good.mean() < 1 - _ODD or abs(np.linalg.det(solution[:2])) < 1e-6:
        return None
    back = Affine(solution[:2].T, solution[2])
    return back.inverse() if _covers(back, region, width, height) else None


def _covers(back: Affine, inside: np.ndarray, width: int, height: int) -> bool:
    """Returns whether the pixels that the map takes from the picture are those."""
    grid = np.stack(np.meshgrid(*map(np.arange, inside.shape[::-1])), axis=-1) + 0.5
    was = back.points(grid)
    taken = ((was >= 0) & (was <= (width, height))).all(-1)
    return bool((taken == inside).mean() >= 1 - _ODD)
