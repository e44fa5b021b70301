"""Made-up pictures and annotations, in the place of a config's training data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError, short
from ..utils.configs import class_of, innermost, meta_of, type_name

# Width and height in pixels, as ImageNet's and COCO's pictures often have them.
_PICTURES = {'PackInputs': (500, 375), 'PackDetInputs': (640, 480)}
_BOXES = 7  # of a picture, COCO's mean
# Made on the machine that uses them, so that nothing need be made up.
OWN = ('DigitsDataset', 'DigitCropsDataset')


def dicts(node: Any) -> Iterator[dict]:
    """Yields all dicts inside a config, outer ones first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for inner in node:
            yield from dicts(inner)


def check_datasets(dataset: Any) -> None:
    """Makes sure that a dataset, and those inside it, are of types that there are.

    Raises:
        ConfigError: naming the first that is not.
    """
    if not isinstance(dataset, dict) or not type_name(dataset):
        raise ConfigError(
            f'{short(repr(dataset))} is no dataset of train_dataloader: it must be a '
            'dict with a type.'
        )
    if class_of(dataset) is None:
        raise ConfigError(
            f'there is no dataset {dataset["type"]!r}: spell it as its class, and '
            'name its module in custom_imports if it is your own.'
        )
    if 'datasets' in dataset:
        for inner in dataset['datasets']:
            check_datasets(inner)
    elif isinstance(dataset.get('dataset'), dict):
        check_datasets(dataset['dataset'])


def make_up(loader: Any, folder: Path, count: int) -> None:
    """Puts made-up pictures in the place of a loader's datasets.

    The demo's digits are made in the folder, as they always are.

    Raises:
        ConfigError: if the pipeline packs something else than pictures with labels,
            boxes or instance masks.
    """
    loader.num_workers = 0
    for key in ('persistent_workers', 'prefetch_factor'):
        loader.pop(key, None)
    transforms = {type_name(part) for part in dicts(loader)}
    packed = [name for name in _PICTURES if name in transforms]
    if not packed or 'LoadPanopticAnnotations' in transforms:
        raise ConfigError(
            '--dry-run makes up pictures with labels, boxes or instance masks, and the '
            'pipeline of train_dataloader packs something else.'
        )
    width, height = _PICTURES[packed[0]]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / 'picture.jpg'), picture)
    for number, dataset in enumerate(innermost(loader.dataset)):
        if type_name(dataset) in OWN:
            dataset['data_root'] = str(folder / 'digits')
            continue
        pipeline = dataset.get('pipeline', [])
        if packed[0] == 'PackInputs':
            made: dict[str, Any] = {'type': 'CustomDataset', 'data_prefix': str(folder)}
            lines = [f'picture.jpg {index % 2}' for index in range(count)]
            file, text = folder / f'{number}.txt', '\n'.join(lines)
        else:
            made = {'type': 'CocoDataset', 'data_prefix': {'img': str(folder)}}
            classes = _classes(dataset)
            made['metainfo'] = {'classes': classes}
            if 'return_classes' in dataset:
                made['return_classes'] = dataset['return_classes']
            content = _annotations(count, width, height, classes)
            file, text = folder / f'{number}.json', json.dumps(content)
        file.write_text(text, encoding='utf-8')
        dataset.clear()
        dataset.update(made, ann_file=str(file), pipeline=pipeline)


def _classes(dataset: dict) -> list[str]:
    classes = meta_of(dataset).get('classes')
    if not classes:
        raise ConfigError(
            f'{type_name(dataset)} has no classes: set metainfo.classes of the dataset.'
        )
    return list(classes)


def _annotations(count: int, width: int, height: int, classes: list[str]) -> dict:
    """COCO's annotations of one picture, so many times."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.1, 0.4, (_BOXES, 2)) * [width, height]
    corners = rng.uniform(0, 0.6, (_BOXES, 2)) * [width, height]
    annotations: list[dict] = []
    for image in range(count):
        for (x, y), (w, h) in zip(corners.tolist(), sides.tolist(), strict=True):
            number = len(annotations)
            annotations.append(
                {
                    'id': number,
                    'image_id': image,
                    'category_id': number % len(classes),
                    'bbox': [x, y, w, h],
                    'area': w * h,
                    'iscrowd': 0,
                    'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    size = {'file_name': 'picture.jpg', 'width': width, 'height': height}
    return {
        'images': [{'id': image, **size} for image in range(count)],
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in enumerate(classes)],
    }
