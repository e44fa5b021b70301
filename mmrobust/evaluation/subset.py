"""Which images are evaluated, all or a fixed choice, and in which batches."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..utils.validation import positive_int

# Images of a batch for every one of a group.
_BATCHES = 4

_OF_IMAGE = ('img_id', 'img_path', 'seg_map_path', 'height', 'width', 'gt_label')
_OF_OBJECT = ('bbox', 'bbox_label', 'ignore_flag', 'mask')


def choose_images(
    dataloader: DataLoader | dict, num_images: int | None, seed: int
) -> DataLoader | dict:
    """Puts a fixed, seeded choice of images in place of a loader config's dataset."""
    if num_images is None:
        return dataloader
    num_images = positive_int(num_images, 'num_images')
    if not isinstance(dataloader, dict):
        raise ConfigError('num_images needs the dataloader as a config, not built.')
    dataset = MMENGINE_DATASETS.build(dataloader['dataset'])
    dataset.full_init()
    if num_images > len(dataset):
        raise ConfigError(
            f'num_images={num_images} is more than the {len(dataset)} images there are.'
        )
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:num_images]
    try:
        dataset.get_subset_(sorted(int(index) for index in chosen))
    except (AttributeError, NotImplementedError) as error:
        raise ConfigError(
            f'num_images is not possible with {type(dataset).__name__}, which cannot '
            'be cut to a subset: leave it out, or use a plain dataset.'
        ) from error
    return {**dataloader, 'dataset': dataset}


def enough_for_groups(
    dataloader: DataLoader | dict, attack_batch_size: int
) -> DataLoader | dict:
    """A loader whose batches have enough images for groups of this size.

    Groups are of one input shape, so batches are larger than they. Batches decide
    nothing else.
    """
    wanted = _BATCHES * positive_int(attack_batch_size, 'attack_batch_size')
    if attack_batch_size == 1:
        return dataloader
    if isinstance(dataloader, dict):
        if dataloader.get('batch_sampler') is not None:
            return dataloader
        return {
            **dataloader,
            'batch_size': max(wanted, dataloader.get('batch_size', 1)),
        }
    if (dataloader.batch_size or wanted) < attack_batch_size:
        raise ConfigError(
            f'attack_batch_size={attack_batch_size} needs batches of as many images: '
            'give the dataloader as a config, or build it with a larger batch_size.'
        )
    return dataloader


def restrict_metrics(evaluator: Evaluator, dataset: Any) -> None:
    """Tells metrics with an annotation file of their own which images count.

    Otherwise they would score all of the file's images, and the others as missed.
    """
    ids = [dataset.get_data_info(index).get('img_id') for index in range(len(dataset))]
    for metric in evaluator.metrics:
        if hasattr(metric, 'img_ids'):
            metric.img_ids = ids
        elif getattr(metric, '_coco_api', None) is not None:
            raise ConfigError(
                f'num_images is not possible with {type(metric).__name__}, which '
                'always scores its whole annotation file.'
            )


def annotations_digest(dataset: Any) -> str | None:
    """SHA-256 of what a dataset says about its images, or None if it says nothing."""
    if not hasattr(dataset, 'get_data_info'):
        return None
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        known = [info.get(key) for key in _OF_IMAGE]
        for each in info.get('instances') or ():
            known += [each.get(key) for key in _OF_OBJECT]
        digest.update(repr(known).encode())
    return digest.hexdigest()
