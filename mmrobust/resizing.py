"""Resizes images bilinearly, as a product with matrices that is its own gradient.

As OpenCV's ``INTER_LINEAR``: half-pixel centres, the border repeated, and no smoothing
of what shrinks. Every result is a mean of pixels with weights that are not negative, so
that values stay within the range that they had.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Resizing:
    """Resizes images of one size to another, with a gradient.

    Both directions are a product with a matrix that is mostly zeros: a small part of a
    detector's cost, and its gradient is the same on every call, which the one of
    ``F.interpolate`` is not on a GPU.

    Args:
        source: height and width of what is resized.
        target: those of the result.
    """

    def __init__(self, source: Sequence[int], target: Sequence[int]) -> None:
        self.source, self.target = tuple(source), tuple(target)
        self._matrices: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, image: Tensor) -> Tensor:
        """Returns a float image (C, *target) of one (C, *source)."""
        if self.source == self.target:
            return image
        # In double precision on a GPU, where a product may be one of TF32.
        wide = image.double() if image.is_cuda else image
        key = (wide.dtype, wide.device)
        if key not in self._matrices:
            pairs = zip(self.source, self.target, strict=True)
            rows, columns = (bilinear_weights(*pair).to(wide) for pair in pairs)
            self._matrices[key] = rows, columns
        rows, columns = self._matrices[key]
        return (rows @ wide @ columns.T).to(image)


def bilinear_weights(source: int, target: int) -> Tensor:
    """Returns the share (target, source) of each pixel of a line in each resized."""
    places = torch.arange(target)
    centres = (places.double() + 0.5) * (source / target) - 0.5
    centres = centres.clamp(0, source - 1)
    left = centres.floor().long()
    share = centres - left
    weights = torch.zeros(target, source, dtype=torch.float64)
    weights[places, left] = 1 - share
    # Not where left is the last pixel: its neighbour would be itself.
    inside = left + 1 < source
    weights[places[inside], left[inside] + 1] = share[inside]
    return weights
