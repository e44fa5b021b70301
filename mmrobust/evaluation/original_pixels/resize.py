"""The differentiable copy of a test pipeline's resizing and padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError


@dataclass(frozen=True)
class Geometry:
    """Sizes (height, width) of a picture on its way to the network.

    Attributes:
        original: of the picture on disk.
        resized: after resizing.
        input: after padding right and bottom, as the network gets it.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    input: tuple[int, int]


class Resizer:
    """Original pixels (C, H, W) to the network's input (C, h, w), with a gradient.

    Bilinear as OpenCV's ``INTER_LINEAR``: half-pixel centres, the border repeated, and
    no smoothing when it shrinks. OpenCV rounds 8-bit pictures to whole numbers, which
    has no gradient, so this copy differs from it by that rounding.

    Both directions are a product with a matrix that is mostly zeros: a small part of a
    detector's cost, and its gradient is the same on every call, which the one of
    ``F.interpolate`` is not on a GPU.

    Args:
        geometry: the sizes.
        pad_val: what is padded with, one number or one per channel.
    """

    def __init__(
        self, geometry: Geometry, pad_val: float | tuple[float, ...] = 0
    ) -> None:
        self.geometry = geometry
        self.pad_val = pad_val
        self._matrices: dict[tuple, tuple[Tensor, Tensor]] = {}

    @property
    def is_identity(self) -> bool:
        """Whether pictures reach the network as they are."""
        return self.geometry.original == self.geometry.input

    def __call__(self, picture: Tensor) -> Tensor:
        """Resizes and pads.

        Args:
            picture: float (C, H, W) of the original size.

        Returns:
            The network's input (C, h, w); the picture itself where nothing changes.

        Raises:
            ConfigError: for a picture of another size.
        """
        original, resized, whole = (
            self.geometry.original,
            self.geometry.resized,
            self.geometry.input,
        )
        if tuple(picture.shape[-2:]) != original:
            raise ConfigError(
                f'a picture of {original[0]} x {original[1]} pixels was expected, and '
                f'this one has {picture.shape[-2]} x {picture.shape[-1]}.'
            )
        if resized != original:
            # In double precision on a GPU, where a product may be one of TF32.
            wide = picture.double() if picture.is_cuda else picture
            rows, columns = self._weights(wide)
            picture = (rows @ wide @ columns.T).to(picture)
        if whole != resized:
            picture = self._pad(picture, whole[0] - resized[0], whole[1] - resized[1])
        return picture

    def _pad(self, picture: Tensor, bottom: int, right: int) -> Tensor:
        if not isinstance(self.pad_val, tuple):
            return F.pad(picture, (0, right, 0, bottom), value=self.pad_val)
        channels = [
            F.pad(channel, (0, right, 0, bottom), value=value)
            for channel, value in zip(picture, self.pad_val, strict=True)
        ]
        return torch.stack(channels)

    def _weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (like.dtype, like.device)
        if key not in self._matrices:
            pairs = zip(self.geometry.original, self.geometry.resized, strict=True)
            rows, columns = (bilinear_weights(*pair).to(like) for pair in pairs)
            self._matrices[key] = rows, columns
        return self._matrices[key]


def bilinear_weights(source: int, target: int) -> Tensor:
    """Share (target, source) that each pixel of a line has in each of the resized."""
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
