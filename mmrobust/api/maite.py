"""Detectors as MAITE's models, and attacks as its augmentations.

The protocols of the package ``maite`` are structural: nothing of it is imported here,
and its tools (https://mit-ll-ai-technology.github.io/maite/) run on these classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.apis import inference_detector
from torch import nn

from ..errors import ConfigError
from ..utils.seeding import derive_seed
from .attack import attack as attack_pictures
from .pictures import meta_of_model

CHANNELS = ('rgb', 'bgr')


@dataclass(frozen=True)
class Detected:
    """Detections of an image: MAITE's ``ObjectDetectionTarget``.

    Attributes:
        boxes: (n, 4) as (x1, y1, x2, y2) in pixels of the image.
        labels: (n,) classes.
        scores: (n,) confidences.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class MaiteModel:
    """A detector as a ``maite.protocols.object_detection.Model``.

    Args:
        model: of ``mmdet.apis.init_detector``, or any with a ``cfg``.
        name: its id.
        channels: order of the images' channels, ``'rgb'`` or ``'bgr'``.
    """

    def __init__(
        self, model: nn.Module, name: str = 'detector', channels: str = 'rgb'
    ) -> None:
        self.model, self.channels = model, _channels(channels)
        classes = meta_of_model(model).get('classes')
        self.metadata: dict[str, Any] = {'id': name}
        if classes:
            self.metadata['index2label'] = dict(enumerate(classes))

    def __call__(self, batch: Sequence[Any]) -> list[Detected]:
        """Detects in images (3, H, W) of 8 bits."""
        pictures = [_picture(image, self.channels) for image in batch]
        found = inference_detector(self.model, pictures) if pictures else []
        return [_detected(each.pred_instances) for each in found]


class MaiteAttack:
    """An attack as a ``maite.protocols.object_detection.Augmentation``.

    Images are attacked as they are (``space='original'``), on the targets that come
    with them, and rounded to 8 bits. What is drawn depends on the id of an image alone.

    Args:
        model: the attacked detector, see :class:`MaiteModel`.
        attack: see :func:`mmrobust.attack`.
        channels: order of the images' channels.
        seed: of the attack's draws.
        **options: of the named attack.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: Any = 'pgd',
        channels: str = 'rgb',
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.model, self.attack, self.options = model, attack, options
        self.channels, self.seed = _channels(channels), seed
        name = attack if isinstance(attack, str) else 'attack'
        self.metadata: dict[str, Any] = {'id': f'mmrobust.{name}'}

    def __call__(
        self, data: tuple[Sequence[Any], Sequence[Any], Sequence[Any]]
    ) -> tuple[list[np.ndarray], list[Any], list[dict[str, Any]]]:
        """Attacks a batch of images, targets and metadata.

        Returns:
            The attacked images, uint8 (3, H, W) each, the targets as they are, and the
            metadata with ``perturbation``, the size in pixel units.
        """
        rows = list(zip(*data, strict=True))
        found = [self._attacked(*row) for row in rows]
        images = [image for image, _ in found]
        told = [
            {**dict(about), 'perturbation': size}
            for (_, _, about), (_, size) in zip(rows, found, strict=True)
        ]
        return images, [target for _, target, _ in rows], told

    def _attacked(
        self, image: Any, target: Any, about: Mapping[str, Any]
    ) -> tuple[np.ndarray, float]:
        (found,) = attack_pictures(
            self.model,
            _picture(image, self.channels),
            self.attack,
            {'bboxes': target.boxes, 'labels': target.labels},
            seed=derive_seed(self.seed, about['id']),
            **self.options,
        )
        return _image(found.adversarial_picture, self.channels), found.distance


def _channels(channels: str) -> str:
    if channels not in CHANNELS:
        raise ConfigError(f"channels={channels!r} is unknown: choose 'rgb' or 'bgr'.")
    return channels


def _picture(image: Any, channels: str) -> np.ndarray:
    """Returns an image (3, H, W) as a picture (H, W, 3), BGR.

    Raises:
        ConfigError: if it is not one of 8 bits.
    """
    values = np.asarray(image)
    whole = values.dtype == np.uint8 or (
        np.array_equal(values, np.rint(values))
        and values.min(initial=0) >= 0
        and values.max(initial=0) <= 255
    )
    if values.ndim != 3 or len(values) != 3 or not whole:
        raise ConfigError(
            f'an image of {values.dtype} {values.shape} came: whole numbers from 0 to '
            '255 of shape (3, H, W) were expected.'
        )
    picture = values.astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(picture[..., ::-1] if channels == 'rgb' else picture)


def _image(picture: np.ndarray, channels: str) -> np.ndarray:
    picture = picture[..., ::-1] if channels == 'rgb' else picture
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _detected(found: Any) -> Detected:
    arrays = (found[key].cpu().numpy() for key in ('bboxes', 'labels', 'scores'))
    return Detected(*arrays)
