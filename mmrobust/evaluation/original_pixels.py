"""Lets attacks work on a picture as it lies on disk, and rounds it to 8 bits.

:class:`Resizer` is the differentiable copy of a test pipeline's resizing and padding,
:class:`ResizedOracle` an oracle on original pixels made of one on the network's input.
:func:`as_picture` and :func:`through_file` make of an attacked image what a file of
8 bits per channel holds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..placement import Placement
from ..resizing import Resizing


@dataclass(frozen=True)
class Geometry:
    """The sizes (height, width) of a picture on its way to the network."""

    original: tuple[int, int]  # of the picture on disk
    resized: tuple[int, int]  # after resizing
    input: tuple[int, int]  # after padding right and bottom, as the network gets it


class Resizer:
    """Turns original pixels (C, H, W) into the input (C, h, w), with a gradient.

    See :mod:`mmrobust.resizing`. OpenCV rounds 8-bit pictures to whole numbers, which
    has no gradient, so this copy differs from it by that rounding.

    Args:
        geometry: the sizes.
        pad_val: what is padded with, one number or one per channel.
    """

    def __init__(
        self, geometry: Geometry, pad_val: float | tuple[float, ...] = 0
    ) -> None:
        self.geometry = geometry
        self.pad_val = pad_val
        self._resizing = Resizing(geometry.original, geometry.resized)

    def __call__(self, picture: Tensor) -> Tensor:
        """Resizes and pads.

        Args:
            picture: float (C, H, W) of the original size.

        Returns:
            The network's input (C, h, w); the picture itself where nothing changes.

        Raises:
            ConfigError: for a picture of another size.
        """
        size = self.geometry
        original, resized, whole = size.original, size.resized, size.input
        if tuple(picture.shape[-2:]) != original:
            raise ConfigError(
                f'a picture of {original[0]} x {original[1]} pixels was expected, and '
                f'this one has {picture.shape[-2]} x {picture.shape[-1]}.'
            )
        picture = self._resizing(picture)
        if whole != resized:
            picture = self._pad(picture, whole[0] - resized[0], whole[1] - resized[1])
        return picture

    def back(self, boxes: Tensor) -> Tensor:
        """Returns where boxes (n, 4) of the input are in the picture."""
        pairs = zip(self.geometry.original, self.geometry.resized, strict=True)
        vertical, horizontal = (old / new for old, new in pairs)
        return boxes * boxes.new_tensor([horizontal, vertical] * 2)

    def _pad(self, picture: Tensor, bottom: int, right: int) -> Tensor:
        one = not isinstance(self.pad_val, tuple)
        values: Any = [self.pad_val] * len(picture) if one else self.pad_val
        channels = zip(picture, values, strict=True)
        edges = (0, right, 0, bottom)
        return torch.stack(
            [F.pad(each, edges, value=value) for each, value in channels]
        )


class ResizedOracle:
    """Answers about original pixels what an oracle says about the network's input.

    Counts and everything else are the inner oracle's, but for regions: all pixels of a
    picture are attackable.

    Args:
        oracle: of the batch's network inputs.
        resizers: one for each image, from :meth:`PicturePipeline.resizer`.
    """

    def __init__(self, oracle: Any, resizers: Sequence[Resizer]) -> None:
        self.oracle = oracle
        self.regions = None
        self.resizers = list(resizers)
        boxes = getattr(oracle, 'boxes', None) or [None] * len(self.resizers)
        pairs = zip(boxes, self.resizers, strict=True)
        self.boxes = [
            None if boxes is None else resizer.back(boxes) for boxes, resizer in pairs
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.oracle, name)

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """Objective (N,) of pictures (C, H, W) in original pixels."""
        with torch.no_grad():
            return self.oracle.value(self.inputs(images))

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Objective (N,), and its gradient with respect to the original pixels."""
        with torch.enable_grad():
            leaves = [image.detach().requires_grad_() for image in images]
            inputs = self.inputs(leaves)
        values, grads = self.oracle.value_and_grad([each.detach() for each in inputs])
        # Image by image: resizing has no memory, and each is let go at once.
        pulled = [
            torch.autograd.grad(each, leaf, grad)[0]
            for each, leaf, grad in zip(inputs, leaves, grads, strict=True)
        ]
        return values, pulled

    def moved(self, places: Sequence[Placement | None]) -> AbstractContextManager[None]:
        """See :meth:`LossOracle.moved`; places are those on the original picture."""
        found: list[Placement | None] = []
        for place, resizer in zip(places, self.resizers, strict=True):
            if place is None:
                found.append(None)
                continue
            size = resizer.geometry
            pairs = zip(size.resized, size.original, strict=True)
            vertical, horizontal = (new / old for new, old in pairs)
            found.append(place.resized((vertical, horizontal), size.input))
        moved: AbstractContextManager[None] = self.oracle.moved(found)
        return moved

    def inputs(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Returns what the network gets of pictures (C, H, W), with a gradient."""
        pairs = zip(self.resizers, images, strict=True)
        return [resizer(image) for resizer, image in pairs]


def as_picture(image: Tensor) -> np.ndarray:
    """Rounds an image to 8 bits.

    Rounding moves each value by at most one half. Where the clean image is of 8 bits
    and eps a whole number, the bounds of the linf ball are whole numbers, so the
    rounded image is inside it if the image was; l2 and l1 balls have no such bounds,
    see :func:`radius`.

    Args:
        image: (C, H, W) in pixel units of 0-255.

    Returns:
        uint8 (H, W, C), rounded to the nearest whole number, not truncated.

    Raises:
        ConfigError: if a value is not finite.
    """
    array = image.detach().cpu().numpy()
    if not np.isfinite(array).all():
        raise ConfigError('an attacked image has values that are not finite.')
    rounded = np.rint(array).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.transpose(1, 2, 0))


def through_file(picture: np.ndarray) -> np.ndarray:
    """Writes a picture as a PNG file and reads it back.

    Args:
        picture: uint8 (H, W, 3), BGR.

    Raises:
        ConfigError: if the file does not hold the picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'picture.png')
        written = cv2.imwrite(path, picture)
        read = cv2.imread(path, cv2.IMREAD_COLOR) if written else None
    if read is None or not np.array_equal(read, picture):
        raise ConfigError(
            f'the picture {path!r} does not hold what was written: is the disk full?'
        )
    return np.asarray(read)


def radius(adversarial: np.ndarray, clean: np.ndarray, norm: str) -> float:
    """Returns the perturbation's size in pixel units, of pictures of one shape.

    Args:
        adversarial: the attacked picture, of any numeric type.
        clean: the original one.
        norm: ``'linf'``, ``'l2'`` or ``'l1'`` over all values.
    """
    delta = np.abs(adversarial.astype(np.float64) - clean.astype(np.float64))
    if norm == 'linf':
        return float(delta.max(initial=0))
    return float(delta.sum() if norm == 'l1' else np.sqrt((delta**2).sum()))
