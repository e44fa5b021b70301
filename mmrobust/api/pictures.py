"""Makes a dataset of pictures that are at hand as files or arrays."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as coco_mask
from mmdet.datasets import BaseDetDataset
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from ..errors import ConfigError
from ..objective import classes_of
from ..utils.configs import innermost, meta_of


class Pictures(BaseDetDataset):
    """Pictures behind a model's own test pipeline.

    Arrays go through a lossless file of 8 bits, so that a pipeline sees all pictures
    alike.

    Args:
        images: paths of pictures, or uint8 arrays (H, W, 3), BGR as mmcv reads them.
        pipeline: the test pipeline, from the file on.
        metainfo: of the model's dataset, whose classes are the text of every picture
            for models that read them.
        classes: how many there are, None if that is not known.

    Raises:
        ConfigError: for a picture that is missing or of another form.
    """

    def __init__(
        self,
        images: Sequence[str | os.PathLike | np.ndarray],
        pipeline: Sequence[Mapping[str, Any]],
        metainfo: Mapping[str, Any],
        classes: int | None = None,
    ) -> None:
        self._classes = classes
        self._folder = tempfile.TemporaryDirectory()
        self.names = [
            os.fspath(image) if isinstance(image, (str, os.PathLike)) else f'image {at}'
            for at, image in enumerate(images)
        ]
        self._infos = [self._info(at, image) for at, image in enumerate(images)]
        if metainfo.get('classes'):
            for info in self._infos:
                info.update(text=tuple(metainfo['classes']), custom_entities=True)
        super().__init__(
            metainfo=dict(metainfo), pipeline=with_annotations(pipeline), test_mode=True
        )

    def _info(self, at: int, image: Any) -> dict[str, Any]:
        path = self.names[at]
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ConfigError(
                    f'image {at} is an array of {image.dtype} {image.shape}: give '
                    'uint8 of shape (H, W, 3) in BGR order, as mmcv.imread reads it.'
                )
            path = os.path.join(self._folder.name, f'{at}.png')
            cv2.imwrite(path, image)
        elif not isinstance(image, (str, os.PathLike)):
            raise ConfigError(
                f'image {at} is a {type(image).__name__}: give paths or uint8 arrays '
                '(H, W, 3) in BGR order, or a dataloader.'
            )
        elif not os.path.isfile(path):
            raise ConfigError(f'image {path} does not exist: check the path.')
        picture = cv2.imread(path, cv2.IMREAD_COLOR)
        if picture is None:
            raise ConfigError(f'image {path} cannot be decoded: replace or remove it.')
        height, width = picture.shape[:2]
        return {
            'img_id': at,
            'img_path': path,
            'height': height,
            'width': width,
            'instances': [],
        }

    def load_data_list(self) -> list[dict[str, Any]]:
        """Returns what is known of each picture."""
        return deepcopy(self._infos)

    def label(self, targets: Sequence[Any]) -> None:
        """Says which objects there are.

        Args:
            targets: one for each picture: a dict, an ``InstanceData``, or a
                ``DetDataSample`` with ``gt_instances``. It has ``bboxes`` (n, 4), as
                (x1, y1, x2, y2) in pixels of the picture, ``labels`` (n,) as numbers of
                the model's classes, and for models that learn masks ``masks``, bool
                (n, H, W).

        Raises:
            ConfigError: if they do not fit.
        """
        if not isinstance(targets, Sequence):
            raise ConfigError(
                f'targets={targets!r} must be a list, one for each image.'
            )
        if len(targets) != len(self._infos):
            raise ConfigError(
                f'there are {len(self._infos)} images and {len(targets)} targets: '
                'give one for each image.'
            )
        for info, target in zip(self._infos, targets, strict=True):
            info['instances'] = _instances(info, target, self._classes)
        self.data_list = self.load_data_list()
        self._fully_initialized = False
        self.full_init()


def meta_of_model(model: Any) -> dict[str, Any]:
    """Returns what is known of a detector's classes: its checkpoint need not tell them.

    Those of its test data then, if they are as many as the detector tells apart.
    """
    meta = dict(getattr(model, 'dataset_meta', None) or {})
    loader = (getattr(model, 'cfg', None) or {}).get('test_dataloader') or {}
    if meta.get('classes') or not loader.get('dataset'):
        return meta
    found = meta_of(innermost(loader['dataset'])[0])
    with suppress(ConfigError):  # of heads that do not count classes
        if len(found.get('classes') or ()) == classes_of(model):
            return {**meta, **found}
    return meta


def with_annotations(pipeline: Sequence[Mapping[str, Any]]) -> list[ConfigDict]:
    """Returns a pipeline that loads pictures from files, and boxes as attacks need."""
    found = [ConfigDict(step) for step in deepcopy(list(pipeline))]
    # mmdet's inference on arrays leaves this behind in the config of the model.
    if str(found[0].type).endswith('LoadImageFromNDArray'):
        found[0].type = 'LoadImageFromFile'
    kinds = [str(step['type']).split('.')[-1] for step in found]
    if not any('Annotations' in kind for kind in kinds) and 'PackDetInputs' in kinds:
        place = kinds.index('PackDetInputs')
        found.insert(place, ConfigDict(type='mmdet.LoadAnnotations', with_bbox=True))
    return found


def _instances(
    info: Mapping[str, Any], target: Any, classes: int | None
) -> list[dict[str, Any]]:
    """Lists the objects of a picture as datasets do."""
    name = info['img_path'] if target is None else f'image {info["img_id"]}'
    if hasattr(target, 'gt_instances'):
        target = target.gt_instances
    readable = isinstance(target, (Mapping, InstanceData))
    if not readable or not all(key in target for key in ('bboxes', 'labels')):
        raise ConfigError(f'the targets of {name} need bboxes (n, 4) and labels (n,).')
    boxes = target['bboxes'] if isinstance(target, Mapping) else target.bboxes
    labels = target['labels'] if isinstance(target, Mapping) else target.labels
    boxes, labels = _array(boxes).astype(float), _array(labels)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
        raise ConfigError(
            f'the targets of {name} have bboxes of shape {boxes.shape} and labels of '
            f'shape {labels.shape}: (n, 4) and (n,) were expected.'
        )
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
        raise ConfigError(
            f'the targets of {name} have bboxes that are not (x1, y1, x2, y2) with '
            'x1 <= x2 and y1 <= y2.'
        )
    known = math.inf if classes is None else classes
    if len(labels) and (labels.min() < 0 or labels.max() >= known):
        raise ConfigError(
            f'the targets of {name} have labels from {labels.min()} to {labels.max()}, '
            f'and the model has classes 0 to {known - 1}.'
        )
    found = [
        {'bbox': box.tolist(), 'bbox_label': int(label), 'ignore_flag': 0}
        for box, label in zip(boxes, labels, strict=True)
    ]
    if 'masks' in target:
        masks = target['masks'] if isinstance(target, Mapping) else target.masks
        for each, mask in zip(found, _array(masks).astype(np.uint8), strict=True):
            coded = coco_mask.encode(np.asfortranarray(mask))
            each['mask'] = {**coded, 'counts': coded['counts'].decode()}
    return found


def _array(values: Any) -> np.ndarray:
    values = getattr(values, 'tensor', values)  # boxes of mmdet's own kinds
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
