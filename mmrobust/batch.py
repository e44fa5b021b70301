"""Takes batches of the data loader apart, and puts other images into them.

An attack works on the loader's images, before the data preprocessor: unpadded, in
pixel units of 0-255, one tensor (C, H, W) per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from .errors import ConfigError


def float_images(data_batch: dict, device: torch.device | str) -> list[Tensor]:
    """Copies a batch's images as float tensors in pixel units.

    Args:
        data_batch: what the data loader yields; ``inputs`` is a list of uint8 or
            float tensors (C, H, W), or one stacked tensor (N, C, H, W).
        device: where the copies live.

    Returns:
        One new float32 tensor (C, H, W) per image.

    Raises:
        ConfigError: if ``inputs`` is a dict, as semi-supervised models have it.
    """
    inputs = data_batch['inputs']
    if isinstance(inputs, dict):
        raise ConfigError(
            f'the batch has several branches ({", ".join(inputs)}), which adversarial '
            'training and attacks do not support: use a model with a single input.'
        )
    return [image.to(device, torch.float32, copy=True) for image in inputs]


def check_batch(data_batch: Any) -> None:
    """Makes sure that a data loader yields what models and attacks read.

    Raises:
        ConfigError: if it does not.
    """
    if isinstance(data_batch, dict) and {'inputs', 'data_samples'} <= set(data_batch):
        return
    found = (
        ', '.join(map(str, data_batch))
        if isinstance(data_batch, dict)
        else f'a {type(data_batch).__name__}'
    )
    raise ConfigError(
        f'the data loader yields {found} and not inputs and data_samples: is '
        'PackDetInputs (of a classifier PackInputs) the last step of the pipeline?'
    )


# How far values of a pipeline may leave 0-255: by interpolation; in training also by
# photometric distortions, which brighten by 32 and multiply contrast by up to 1.5.
_OVERSHOOT, _DISTORTION = 1.0, 400.0
# Images whose values are no larger and not whole are scaled to 1, or normalised.
_SCALED, _NORMALISED = 1.001, 6.0


def check_range(images: Sequence[Tensor], distorted: bool = False) -> None:
    """Makes sure that images are in pixel units of 0-255, in which eps is given.

    Args:
        images: what the data loader yields, (C, H, W) each, of any type.
        distorted: they are augmented for training, and may leave the range.

    Raises:
        ConfigError: naming the range that they are in.
    """
    kinds = [
        image
        for image in images
        if isinstance(image, Tensor) and image.dtype != torch.uint8 and image.numel()
    ]
    if not kinds:
        return
    others = [image.float() for image in kinds]  # torch computes little of uint16
    ends = [torch.stack(torch.aminmax(image)).double() for image in others]
    least = min(float(low) for low, _ in ends)
    largest = max(float(high) for _, high in ends)
    slack, size = (_DISTORTION, _NORMALISED) if distorted else (_OVERSHOOT, _SCALED)
    outside = least < -slack or largest > 255 + slack
    if not outside and max(-least, largest) <= size:
        outside = any(bool((image != image.round()).any()) for image in others)
    if outside:
        kind = str(kinds[0].dtype).removeprefix('torch.')
        raise ConfigError(
            f'the data loader yields images with values from {least:.4g} to '
            f'{largest:.4g} ({kind}), and attacks work in pixel units of 0-255: '
            'normalise in model.data_preprocessor (mean, std) and not in the '
            'pipeline, and bring pictures of 16 bits to 0-255 where they are loaded.'
        )


def with_images(data_batch: dict, images: Sequence[Tensor]) -> dict:
    """Returns the batch with other images; the given batch stays as it is."""
    stacked = isinstance(data_batch['inputs'], Tensor)
    return {**data_batch, 'inputs': torch.stack(list(images)) if stacked else images}


def take(data_batch: dict, indices: Sequence[int]) -> dict:
    """Returns a batch of some of the images, with all that belongs to them."""
    count = len(data_batch['inputs'])

    def part(value: Any) -> Any:
        if not isinstance(value, (list, tuple, Tensor)) or len(value) != count:
            return value
        chosen = [value[i] for i in indices]
        return torch.stack(chosen) if isinstance(value, Tensor) else chosen

    return {key: part(value) for key, value in data_batch.items()}


def with_samples(data_batch: dict) -> dict:
    """Returns the batch with one sample per image, where a project collates otherwise.

    mmyolo's ``yolov5_collate`` puts the objects of all images into one tensor (M, 6):
    the image's place in the batch, the label, and the box (x1, y1, x2, y2). Lists
    beside it have a value for each image.

    Raises:
        ConfigError: for anything else that is no list of samples.
    """
    given, images = data_batch['data_samples'], data_batch['inputs']
    if not isinstance(given, dict):
        return data_batch
    rows = given.get('bboxes_labels')
    fields = {key: value for key, value in given.items() if isinstance(value, list)}
    if rows is None or len(given) > len(fields) + 1:
        raise ConfigError(
            f'data_samples of the batch is a dict of {", ".join(given)} and not one '
            "sample per image: set collate_fn=dict(type='pseudo_collate') in the "
            'dataloader, and the data preprocessor that goes with it.'
        )
    # Not at the top: mmdet may be missing where there are classifiers only.
    from mmdet.structures import DetDataSample

    samples = []
    for place, image in enumerate(images):
        own = rows[rows[:, 0] == place]
        shape = tuple(image.shape[-2:])
        sample = DetDataSample(metainfo={'img_shape': shape, 'ori_shape': shape})
        boxes = own[:, 2:].clone()
        sample.gt_instances = InstanceData(bboxes=boxes, labels=own[:, 1].long())
        for key, values in fields.items():
            if values[place] is not None:
                sample.set_field(values[place], key)
        samples.append(sample)
    return {**data_batch, 'data_samples': samples}


def split_batch(data_batch: dict) -> list[dict]:
    """Splits a batch into batches of one image.

    Detection losses are normalised over the batch and images are padded to the
    largest one, so only an image alone has an adversarial example of its own.
    """
    return [take(data_batch, [i]) for i in range(len(data_batch['inputs']))]


def image_id(sample: BaseDataElement) -> Any:
    """Returns the id of an image: mmdet's, or mmpretrain's place in the dataset."""
    return sample.get('img_id', sample.get('sample_idx', None))


def resize_delta(delta: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Fits a perturbation (C, h, w) to another image's (C, H, W).

    Nearest neighbour, so that no value grows (and linf bounds keep holding).
    """
    if tuple(delta.shape[-2:]) == tuple(shape[-2:]):
        return delta
    return F.interpolate(delta[None], size=tuple(shape[-2:]), mode='nearest')[0]
