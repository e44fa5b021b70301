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
    whole = np.issubdtype(picture.dtype, np.integer)
    rising = (line.round() if whole else line).astype(picture.dtype)
    return np.broadcast_to(rising.reshape(shape), picture.shape).copy()


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
    dark: np.ndarray,
    light: np.ndarray,
    columns: np.ndarray,
    rows: np.ndarray,
    picture_size: Sequence[int],
) -> Affine | None:
    """Returns the map from a picture to what a pipeline made of it.

    Args:
        dark: (h, w), what the pipeline made of a picture that is 0 all over.
        light: (h, w), of one that has the ramps' largest brightness, 254, all over.
        columns: (h, w), of the one that rises to the right.
        rows: (h, w), of the one that rises downwards.
        picture_size: height and width of the picture, at least 2.

    Returns:
        None if no affine map explains what came out.
    """
    height, width = picture_size
    inside = dark != light
    places = np.flatnonzero(inside)
    if len(places) > _MOST:
        places = np.random.default_rng(0).choice(places, _MOST, replace=False)
    pictures = (dark, light, columns, rows)
    black, white, *ramps = (each.reshape(-1)[places].astype(float) for each in pictures)
    gain = (white - black) / _TOP  # whatever a pipeline does to brightness
    seen = np.stack([(each - black) / gain for each in ramps], axis=1)
    steps = _TOP / np.array([width - 1, height - 1])
    was = seen / steps + 0.5
    y, x = np.divmod(places, inside.shape[1])
    now = np.stack([x + 0.5, y + 0.5, np.ones(len(places))], axis=1)
    good = np.ones(len(places), bool)
    for _ in range(3):  # without what is off the map of the others
        solution, _, rank, _ = np.linalg.lstsq(now[good], was[good], rcond=None)
        if rank < 3:
            return None
        off = np.abs(now @ solution - was) * steps
        before, good = good, (off <= _ROUNDING).all(1)
        if np.array_equal(before, good):
            break
    if good.mean() < 1 - _ODD or abs(np.linalg.det(solution[:2])) < 1e-6:
        return None
    back = Affine(solution[:2].T, solution[2])
    return back.inverse() if _covers(back, inside, width, height) else None


def _covers(back: Affine, inside: np.ndarray, width: int, height: int) -> bool:
    """Returns whether the pixels that the map takes from the picture are those."""
    rows, columns = (np.arange(size) + 0.5 for size in inside.shape)
    taken = np.ones_like(inside)
    for (x, y), shift, size in zip(
        back.matrix, back.shift, (width, height), strict=True
    ):
        was = (x * columns)[None] + (y * rows + shift)[:, None]
        taken &= (was >= 0) & (was <= size)
    return bool((taken == inside).mean() >= 1 - _ODD)
