"""The demo's digits, one by one: the same data as a classification set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.datasets import BaseDataset

from ..errors import ConfigError
from ..registry import DATASETS, TRANSFORMS
from .digits import digits_root, ensure_digits
from .drawing import CLASSES, SPLITS


@DATASETS.register_module()
class DigitCropsDataset(BaseDataset):
    """Every digit of :class:`DigitsDataset` as a picture with a label (mmpretrain).

    ``gt_label`` is the digit, ``crop_box`` its box ``[x1, y1, x2, y2]`` in pixels, for
    :class:`CropBox`. About 2000 training and 500 validation digits, which share
    neither digits nor photograph pixels; made on first use.

    Args:
        split: ``'train'`` or ``'val'``.
        data_root: folder of the data; default: the cache, see
            :func:`mmrobust.datasets.digits_root`.
        **kwargs: as for mmpretrain's ``BaseDataset`` (``pipeline``, ``indices``, ...).

    Raises:
        ConfigError: for an unknown split.
    """

    METAINFO = {'classes': CLASSES}

    def __init__(self, split: str = 'train', data_root: str = '', **kwargs: Any):
        if split not in SPLITS:
            raise ConfigError(f'split={split!r} is unknown: choose one of {SPLITS}.')
        self.split = split
        super().__init__(ann_file='', data_root=data_root or digits_root(), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Makes the data if they are not there, then lists the digits."""
        root = Path(self.data_root)
        ensure_digits(root)
        file = root / 'annotations' / f'instances_{self.split}.json'
        content = json.loads(file.read_text())
        names = {image['id']: image['file_name'] for image in content['images']}
        infos = []
        for annotation in content['annotations']:
            x, y, width, height = annotation['bbox']
            infos.append(
                {
                    'img_path': str(root / self.split / names[annotation['image_id']]),
                    'gt_label': annotation['category_id'],
                    'crop_box': [x, y, x + width, y + height],
                }
            )
        return infos


@TRANSFORMS.register_module()
class CropBox(BaseTransform):
    """Cuts a square around ``crop_box`` out of an image.

    Where the square leaves the image, the border is repeated.

    Required Keys: img, crop_box. Modified Keys: img, img_shape.

    Args:
        context: side of the square as a multiple of the box's longer side.
    """

    def __init__(self, context: float = 1.25) -> None:
        if not context >= 1:
            raise ConfigError(f'context={context!r} must be at least 1.')
        self.context = context

    def transform(self, results: dict) -> dict:
        """Cuts."""
        x1, y1, x2, y2 = results['crop_box']
        side = max(1, round(self.context * max(x2 - x1, y2 - y1)))
        left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
        padded = cv2.copyMakeBorder(
            results['img'], side, side, side, side, cv2.BORDER_REPLICATE
        )
        crop = padded[top + side : top + 2 * side, left + side : left + 2 * side]
        results['img'] = np.ascontiguousarray(crop)
        results['img_shape'] = crop.shape[:2]
        return results
