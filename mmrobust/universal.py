"""Universal perturbations and patches as PNG files, with their settings inside.

A perturbation stands for itself plus 128, so that a file shows it; it lives on a canvas
that is stretched over every picture. What it was made with is in the file's text, and
tells whether it is scored on the images that it was fitted on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from .errors import ConfigError
from .resizing import Resizing
from .threat import ThreatModel
from .utils.files import file_sha256, write_atomically

# Kinds of files, named as the attacks that show them.
PERTURBATION, PATCH = 'universal', 'universal-patch'

# What a perturbation of 0 is in a file, and the largest one that has room there.
_ZERO, LARGEST = 128, 127
_KEY = 'mmrobust'
# Of a file's hash, that tells images apart.
_DIGITS = 16
# Characters of a text in a file: Pillow reads none above a mebibyte, and the hashes of
# COCO's images are longer.
_CHUNK = 1 << 19
# Sizes of images that a canvas remembers.
_MOST = 16


@dataclass(frozen=True)
class Stored:
    """A picture with the settings that it was made with.

    Attributes:
        path: of the file.
        values: float32 (3, H, W), in the channel order of mmdet's loaders, BGR.
        settings: what was made known of it; empty of a file from elsewhere.
        sha256: of the file.
    """

    path: str
    values: Tensor
    settings: Mapping[str, Any]
    sha256: str

    def about(self) -> dict[str, Any]:
        """Returns what a report says of it."""
        known = ('objective', 'fitted_on', 'fitted_with')
        told = {key: self.settings[key] for key in known if key in self.settings}
        return {'file': self.path, 'sha256': self.sha256, **told}

    def doubts(self, dataset: Any) -> list[str]:
        """Says what is doubtful of figures on these images.

        Args:
            dataset: the evaluated one.

        Raises:
            ConfigError: if all of them are images that it was fitted on.
        """
        if not self.settings:
            return [
                f'{self.path} does not say what it was fitted on: its figures are of '
                'other images only if you know that they are'
            ]
        fitted = set(self.settings.get('images', '').split())
        tested = image_hashes(dataset)
        known = sum(each in fitted for each in tested)
        if known and known == len(tested):
            raise ConfigError(
                f'{self.path} was fitted on all of the images that it is to be tested '
                'on: test on others.'
            )
        if known:
            return [
                f'{self.path} was fitted on {known} of the {len(tested)} images: only '
                'figures on other images tell how universal it is'
            ]
        return []


class Canvas:
    """Stretches what lies on a canvas over the pictures of images, with a gradient.

    Args:
        size: height and width of the canvas.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)
        self._resizings: dict[tuple[int, ...], Resizing] = {}

    def added(self, values: Tensor, image: Tensor, threat: ThreatModel) -> Tensor:
        """Returns an image to which a perturbation was added.

        Args:
            values: the perturbation (C, *size).
            image: (C, H, W) in pixel units.
            threat: the threat model of the image, whose region is its picture. Bilinear
                weights are convex, so that radii in linf stay what they are.

        Raises:
            ConfigError: for an image of another number of channels.
        """
        if len(values) != len(image):
            raise ConfigError(
                f'the images have {len(image)} channels, and the perturbation '
                f'{len(values)}.'
            )
        window, _ = threat.window()
        behind = image[window]
        target = tuple(behind.shape[-2:])
        if target not in self._resizings:
            if len(self._resizings) == _MOST:  # each has large matrices
                self._resizings.clear()
            self._resizings[target] = Resizing(self.size, target)
        moved = image.clone()
        moved[window] = behind + self._resizings[target](values.to(behind))
        if threat.region is not None:
            moved = torch.where(threat.region, moved, image)
        return moved.clamp(threat.lo, threat.hi)


def write_perturbation(
    path: Path, perturbation: Tensor, eps: float, settings: Mapping[str, Any]
) -> str:
    """Writes a perturbation, rounded without leaving its ball, and its settings.

    Args:
        path: of the PNG file; a JSON file of the same name tells the settings, too.
        perturbation: (3, H, W) in pixel units, of the loaders' channel order.
        eps: radius in linf, from 1 to 127.
        settings: JSON.

    Returns:
        The file's hash.
    """
    bound = int(min(eps, LARGEST))
    whole = perturbation.detach().cpu().round().clamp(-bound, bound) + _ZERO
    return write_picture(path, whole, settings)


def read_perturbation(path: str | os.PathLike) -> Stored:
    """Reads a perturbation that :func:`write_perturbation` wrote, or a foreign one.

    Returns:
        Its ``settings`` have at least an ``eps``, but for a file from elsewhere.

    Raises:
        ConfigError: if it is no picture of colours, or leaves its own ball.
    """
    stored = read_picture(path, PERTURBATION)
    values = stored.values - _ZERO
    largest, eps = float(values.abs().max()), stored.settings.get('eps')
    if eps is not None and largest > eps:
        raise ConfigError(
            f'{stored.path} has a perturbation of {largest:g}, and its settings an eps '
            f'of {eps:g}: it was changed.'
        )
    return Stored(stored.path, values, stored.settings, stored.sha256)


def write_picture(path: Path, picture: Tensor, settings: Mapping[str, Any]) -> str:
    """Writes a picture (3, H, W) of whole numbers 0-255 with settings inside.

    Returns:
        The file's hash.
    """
    pixels = picture.flip(0).permute(1, 2, 0).to(torch.uint8).cpu().numpy()
    text, told = PngImagePlugin.PngInfo(), json.dumps(settings, sort_keys=True)
    for number, start in enumerate(range(0, len(told), _CHUNK)):
        text.add_text(_key(number), told[start : start + _CHUNK], zip=True)
    content = io.BytesIO()
    Image.fromarray(pixels, 'RGB').save(content, 'PNG', pnginfo=text)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    write_atomically(path, content.getvalue())
    beside = json.dumps({'sha256': digest, **settings}, indent=2)
    write_atomically(path.with_suffix('.json'), beside + '\n')
    return digest


def _key(number: int) -> str:
    """The name of a part of the settings' text."""
    return f'{_KEY}.{number}' if number else _KEY


def read_picture(path: str | os.PathLike, kind: str) -> Stored:
    """Reads a picture of colours, and the settings inside of it if there are any.

    Args:
        path: of the file.
        kind: what its settings have to call it.

    Raises:
        ConfigError: for anything else.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ConfigError(f'{path!r} does not exist: give a PNG file.')
    try:
        with Image.open(path) as image:
            image.load()
            form, mode, text = image.format, image.mode, dict(image.info)
            pixels = np.array(image)
        parts = takewhile(text.__contains__, map(_key, count()))
        settings = dict(json.loads(''.join(text[part] for part in parts) or '{}'))
    except Exception as error:  # each of Pillow's readers has its own
        raise ConfigError(f'{path!r} cannot be read as a PNG file.') from error
    if form != 'PNG' or mode != 'RGB':
        raise ConfigError(
            f'{path!r} is a {form} file of mode {mode}: give a PNG file of three '
            'colours of 8 bits, without an alpha channel or a palette.'
        )
    if settings and settings.get('kind') != kind:
        raise ConfigError(
            f'{path!r} is a {settings.get("kind")} and no {kind}: see --attack.'
        )
    values = torch.from_numpy(pixels).permute(2, 0, 1).flip(0).float().contiguous()
    return Stored(path, values, settings, file_sha256(path) or '')


def image_hashes(dataset: Any) -> list[str]:
    """Hashes the files of a dataset's images; those that are no files are left out."""
    if not hasattr(dataset, 'get_data_info'):
        return []
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    hashes = (file_sha256(info.get('img_path')) for info in infos)
    return [each[:_DIGITS] for each in hashes if each]
