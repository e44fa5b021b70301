"""Attacked images as pictures of 8 bits, which is all that a file holds."""

from __future__ import annotations

import os
import tempfile

import cv2
import numpy as np
from torch import Tensor

from ...errors import ConfigError
from ...threat import ThreatModel


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


def through_file(
    picture: np.ndarray, path: str | os.PathLike | None = None
) -> np.ndarray:
    """Writes a picture as a PNG file and reads it back.

    Args:
        picture: uint8 (H, W, 3), BGR.
        path: the file, ending in ``.png``; a temporary one by default.

    Returns:
        What the file holds, the same form.

    Raises:
        ConfigError: if the file cannot be written, or does not hold the picture.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ConfigError(
            f'only uint8 pictures (H, W, 3) are written, and this one is '
            f'{picture.dtype} of shape {picture.shape}.'
        )
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            return through_file(picture, os.path.join(folder, 'picture.png'))
    path = os.fspath(path)
    if not path.lower().endswith('.png'):
        raise ConfigError(
            f'{path!r} must end in .png: other formats may lose part of a perturbation.'
        )
    if not cv2.imwrite(path, picture):
        raise ConfigError(f'the picture {path!r} cannot be written.')
    read = cv2.imread(path, cv2.IMREAD_COLOR)
    if read is None or not np.array_equal(read, picture):
        raise ConfigError(
            f'the picture {path!r} does not hold what was written: is the disk full?'
        )
    return np.asarray(read)


def radius(adversarial: np.ndarray, clean: np.ndarray, norm: str) -> float:
    """Size of the perturbation in pixel units, of pictures of one shape.

    Args:
        adversarial: the attacked picture, of any numeric type.
        clean: the original one.
        norm: ``'linf'``, ``'l2'`` or ``'l1'`` over all values.

    Raises:
        ConfigError: for another norm, or pictures of different shapes.
    """
    ThreatModel(norm)  # refuses unknown norms
    if adversarial.shape != clean.shape:
        raise ConfigError(
            f'pictures of shapes {adversarial.shape} and {clean.shape} have no '
            'distance.'
        )
    delta = np.abs(adversarial.astype(np.float64) - clean.astype(np.float64))
    if norm == 'linf':
        return float(delta.max(initial=0))
    return float(delta.sum() if norm == 'l1' else np.sqrt((delta**2).sum()))
