"""Checks of a dataset and its model before hours of computing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

from ..errors import ConfigError
from .classes import no_class_of_annotations


def check_has_boxes(dataset: Any, purpose: str) -> None:
    """Makes sure that a dataset has an object at all, and that its boxes are boxes.

    Boxes that are not finite or have their corners exchanged make losses NaN without
    any error. If the pipeline loads masks, each object needs one. Reads annotations
    only.

    Args:
        dataset: an mmdet dataset or a wrapper of it. Datasets that give no
            ``instances`` (classification, say) pass.
        purpose: ``'training'`` or ``'attack'``, for the message.

    Raises:
        ConfigError: if the dataset is empty or has no object, or for such a box or an
            object without its mask.
    """
    if len(dataset) == 0:
        raise ConfigError(
            f'the dataset for the {purpose} is empty: check ann_file, data_prefix and '
            f'filter_cfg{_why(dataset)}.'
        )
    if not hasattr(dataset, 'get_data_info'):
        return
    objects, masks = 0, any(map(_loads_masks, _parts(dataset)))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if 'instances' not in info:
            return
        objects += len(info['instances'])
        for instance in info['instances']:
            if not _is_box(instance.get('bbox')):
                raise ConfigError(
                    f'{info.get("img_path", f"image {index}")} has the box '
                    f'{instance["bbox"]} (x1, y1, x2, y2), which is none: repair or '
                    'remove its annotation.'
                )
            if masks and 'mask' not in instance:
                raise ConfigError(
                    f'{info.get("img_path", f"image {index}")} has an object without a '
                    'mask (segmentation), which the pipeline loads (with_mask): take '
                    'annotations with masks.'
                )
    if objects == 0:
        raise ConfigError(
            f'the dataset for the {purpose} has {len(dataset)} images and no box at '
            'all: check ann_file and that metainfo names the classes of the annotation '
            f'file{_why(dataset)}.'
        )


def _loads_masks(transform: Any) -> bool:
    # mmdet's own: a subclass may have masks from elsewhere, or do without some.
    kind = type(transform)
    own = kind.__name__ == 'LoadAnnotations' and kind.__module__.startswith('mmdet.')
    return own and transform.with_mask


def _why(dataset: Any) -> str:
    reason = no_class_of_annotations(dataset)
    return f' ({reason})' if reason else ''


# Boxes become float32; a larger number would be infinite there.
_LARGEST = 3.4e38


def _is_box(box: Any) -> bool:
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return True  # of another kind
    x1, y1, x2, y2 = box
    # False for NaN.
    return -_LARGEST < x1 <= x2 < _LARGEST and -_LARGEST < y1 <= y2 < _LARGEST


# What comes in one sample, by the data preprocessor; subclasses are meant too.
_SEVERAL = {
    'MultiBranchDataPreprocessor': 'several branches of images',
    'TrackDataPreprocessor': 'several frames of a video',
    'ReIDDataPreprocessor': 'several pictures of an object',
}


def check_one_image_each(model: Any) -> None:
    """Makes sure that a sample of a batch is one image.

    Args:
        model: the bare model. Teacher and student (SoftTeacher and its like) see one
            image in several branches, trackers see frames of a video.

    Raises:
        ConfigError: if a sample holds more.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    if getattr(preprocessor, 'use_det_processor', False):  # a tracker's detector
        return
    for kind in type(preprocessor).__mro__:
        if kind.__name__ in _SEVERAL:
            raise ConfigError(
                f'{type(model).__name__} takes {_SEVERAL[kind.__name__]} in one sample '
                f'({kind.__name__}), which adversarial training does not support: '
                'train a model with one image in a sample, or use NoAdversary.'
            )


def gives_rgb(dataset: Any) -> bool:
    """Tells whether images are RGB instead of BGR, as those of mmpretrain's CIFAR.

    Args:
        dataset: a dataset or a wrapper of it.
    """
    while isinstance(inner := getattr(dataset, 'dataset', None), Dataset):
        dataset = inner
    # Known by name, so that detectors do not import mmpretrain's datasets.
    return any(
        kind.__module__ == 'mmpretrain.datasets.cifar' for kind in type(dataset).__mro__
    )


def keeps_images(dataset: Any) -> bool:
    """Tells whether a transform keeps earlier images, as mmdet's CachedMosaic does.

    Args:
        dataset: a dataset, a wrapper of some, or a pipeline or transform of one.
    """
    return any(hasattr(part, 'results_cache') for part in _parts(dataset))


def _parts(dataset: Any) -> Iterator[Any]:
    """Yields a dataset, what it wraps, and the transforms of their pipelines."""
    if isinstance(dataset, (list, tuple)):
        inner = list(dataset)
    else:
        yield dataset
        names = ('dataset', 'datasets', 'pipeline', 'transforms')
        inner = [getattr(dataset, name) for name in names if hasattr(dataset, name)]
    for part in inner:
        yield from _parts(part)
