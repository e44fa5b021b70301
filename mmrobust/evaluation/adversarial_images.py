"""Writes adversarial images, and predictions on them, to one place per attack."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..batch import image_id
from ..errors import ConfigError
from ..utils.files import replacing, write_atomically


class AdversarialImages:
    """Writes each adversarial image in the space where it was attacked.

    ``<folder>/<attack>/<image id>.npz`` holds ``image``, float32 (C, H, W) in pixel
    units of 0-255, in the loader's channel order (BGR in mmdet): the network's input,
    or the picture before it is resized. A ``.png`` rounded to 8 bits lies beside it
    for looking at, and ``attack.json`` describes the attack and the ``space``.
    Characters of an id that no file name may have are percent-encoded. JPEG would undo
    part of a perturbation.

    Args:
        folder: where the attack's folder is made.
        name: the attack's name.
        description: the attack's settings.
    """

    def __init__(self, folder: str, name: str, description: dict[str, Any]) -> None:
        self.folder = Path(folder) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({'name': name, **description}, indent=2)
        write_atomically(self.folder / 'attack.json', text)

    @classmethod
    def maybe(
        cls, folder: str | None, name: str, description: dict[str, Any]
    ) -> AdversarialImages | None:
        """Makes one if a folder is given."""
        return cls(folder, name, description) if folder else None

    def save(
        self, samples: Sequence[BaseDataElement], images: Sequence[Tensor]
    ) -> None:
        """Writes the images of one batch."""
        for sample, image in zip(samples, images, strict=True):
            array = image.detach().cpu().numpy()
            key = image_id(sample)
            if key is None:
                raise ConfigError(
                    'adversarial images are saved by their img_id, which the samples '
                    "do not have: add 'img_id' to the meta_keys of PackDetInputs."
                )
            stem = self._stem(key)
            # Not in place: processes may share a padded image.
            with replacing(f'{stem}.npz') as temporary:
                np.savez_compressed(
                    temporary,
                    image=array,
                    img_path=str(sample.get('img_path', '')),
                    ori_shape=sample.get('ori_shape', array.shape[1:]),
                )
            picture = array.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
            with replacing(f'{stem}.png') as temporary:
                cv2.imwrite(str(temporary), picture)

    def take_over(
        self, other: AdversarialImages, samples: Sequence[BaseDataElement]
    ) -> None:
        """Copies the images of one batch from another attack."""
        for sample in samples:
            stems = [each._stem(image_id(sample)) for each in (other, self)]
            for end in ('.npz', '.png'):
                theirs, ours = (f'{stem}{end}' for stem in stems)
                with replacing(ours) as temporary:
                    shutil.copyfile(theirs, temporary)

    def has(self, samples: Sequence[BaseDataElement]) -> bool:
        """Returns whether the images of one batch are there."""
        stems = [self._stem(image_id(sample)) for sample in samples]
        return all(
            Path(f'{stem}{end}').is_file() for stem in stems for end in ('.npz', '.png')
        )

    def _stem(self, key: Any) -> Path:
        # An id may be a path (WIDER FACE).
        return self.folder / quote(str(key), safe='')


@contextmanager
def dumps_renamed(evaluator: Evaluator, name: str) -> Iterator[None]:
    """Lets metrics that write their results to files write one file per attack."""
    kept = []
    for metric in evaluator.metrics:
        for attribute in ('out_file_path', 'outfile_prefix'):
            path = getattr(metric, attribute, None)
            if path is not None:
                kept.append((metric, attribute, path))
                stem, extension = os.path.splitext(path)
                setattr(metric, attribute, f'{stem}.{name}{extension}')
    try:
        yield
    finally:
        for metric, attribute, path in kept:
            setattr(metric, attribute, path)
