"""Puts the ground truth of a batch into the frame of the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, PixelData

from .errors import ConfigError
from .region import REGION

_ANNOTATIONS = ('gt_instances', 'ignored_instances', 'gt_sem_seg', 'gt_panoptic_seg')

# Transforms that may stand before LoadAnnotations without losing track of the boxes:
# loading and packing, resizing (undone by ``scale_factor``), padding right and bottom.
_HARMLESS = ('LoadImageFromFile', 'LoadImageFromNDArray', 'LoadProposals', 'Pad')


def attack_samples(
    data_samples: Sequence[BaseDataElement], device: torch.device | str, gt_frame: str
) -> list[BaseDataElement]:
    """Copies the ground truth and puts it into the network's input frame.

    mmdet's test pipelines load annotations after resizing, so boxes are in the
    original image's frame while the network sees the resized one; a loss computed on
    them is wrong without any error. The evaluator still needs the original samples,
    hence the copy.

    Args:
        data_samples: samples of the batch with ``gt_instances``.
        device: where the copies live.
        gt_frame: ``'original'`` or ``'input'``, see :func:`gt_frame_of`.

    Returns:
        New samples with boxes, masks and segmentation maps in the input frame.
    """
    return [_attack_sample(sample, device, gt_frame) for sample in data_samples]


def _attack_sample(
    sample: BaseDataElement, device: torch.device | str, gt_frame: str
) -> BaseDataElement:
    copy = type(sample)(metainfo=sample.metainfo)
    # The proposals of Fast R-CNN are resized along with the image, and stay.
    for key in (*_ANNOTATIONS, 'proposals', REGION):
        if key in sample:
            # Not clone(), which shares the boxes: what follows must not reach the
            # evaluator's samples.
            copy.set_field(deepcopy(sample.get(key)).to(device), key)
    width_scale, height_scale = (float(s) for s in sample.get('scale_factor', (1, 1)))
    if gt_frame == 'input' or (width_scale, height_scale) == (1.0, 1.0):
        return copy
    height, width = _shape_of(sample)
    for key in ('gt_instances', 'ignored_instances'):
        instances = copy.get(key, None)
        if instances is None:
            continue
        boxes = instances.get('bboxes', None)
        if boxes is not None and hasattr(boxes, 'rescale_'):
            boxes.rescale_((width_scale, height_scale))
        elif boxes is not None:
            factors = (width_scale, height_scale) * (boxes.shape[-1] // 2)
            instances.bboxes = boxes * boxes.new_tensor(factors)
        masks = instances.get('masks', None)
        if masks is not None:
            instances.masks = masks.resize((height, width))
    if 'gt_sem_seg' in copy:
        segmentation = copy.gt_sem_seg.sem_seg
        resized = F.interpolate(
            segmentation[None].float(), size=(height, width), mode='nearest'
        )[0]
        copy.gt_sem_seg = PixelData(sem_seg=resized.to(segmentation.dtype))
    return copy


def _shape_of(sample: BaseDataElement) -> tuple[int, int]:
    """Height and width of a sample's image in the network's input."""
    if 'img_shape' not in sample:
        raise ConfigError(
            'the images come without their img_shape, which models and attacks need: '
            'add it to the meta_keys of PackDetInputs.'
        )
    height, width = sample.img_shape[:2]
    return height, width


def count_boxes_outside(samples: Sequence[BaseDataElement]) -> int:
    """Counts boxes whose centre lies outside their image.

    Args:
        samples: samples in the input frame, from :func:`attack_samples`.

    Returns:
        The number of such boxes; more than a few mean a wrong ``gt_frame``.
    """
    outside = 0
    for sample in samples:
        height, width = _shape_of(sample)
        boxes = sample.gt_instances.bboxes
        boxes = boxes.tensor if hasattr(boxes, 'tensor') else boxes
        if len(boxes) and boxes.shape[-1] == 4:
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            size = centres.new_tensor((width, height))
            outside += int(((centres < 0) | (centres > size)).any(dim=1).sum())
    return outside


def gt_frame_of(dataset: Any) -> str:
    """Finds out in which frame a dataset's pipeline leaves the ground truth.

    Args:
        dataset: a dataset with a ``pipeline``, or a wrapper of such.

    Returns:
        ``'original'`` when boxes are loaded after the image was resized (mmdet's test
        pipelines), ``'input'`` when they are loaded before and transformed along.

    Raises:
        ConfigError: if the pipeline loads no annotations, or if a transform before
            them changes the geometry in a way that cannot be undone.
    """
    while not hasattr(dataset, 'pipeline'):
        inner = getattr(dataset, 'dataset', None) or next(
            iter(getattr(dataset, 'datasets', ())), None
        )
        if inner is None:
            raise ConfigError(
                f'{type(dataset).__name__} has no pipeline to read the frame of its '
                "boxes from: set gt_frame='original' or 'input' in the test loop."
            )
        dataset = inner
    names = [type(transform).__name__ for transform in dataset.pipeline.transforms]
    # Also LoadPanopticAnnotations and custom ones.
    loading = [
        i for i, n in enumerate(names) if n.startswith('Load') and 'Annotations' in n
    ]
    if not loading:
        raise ConfigError(
            f'the pipeline of {type(dataset).__name__} loads no annotations '
            f'({", ".join(names) or "it is empty"}), and an attack needs them: add '
            "dict(type='LoadAnnotations', with_bbox=True) to it."
        )
    before, after = names[: loading[0]], names[loading[0] :]
    unknown = [
        name for name in before if name not in _HARMLESS and 'Resize' not in name
    ]
    if unknown:
        raise ConfigError(
            f'{unknown[0]} stands before LoadAnnotations in the pipeline, so the frame '
            'of the boxes is unknown: move LoadAnnotations to the front, or set '
            "gt_frame='original' or 'input' in the test loop."
        )
    resized_before = any('Resize' in name for name in before)
    if resized_before and any('Resize' in name for name in after):
        raise ConfigError(
            'the pipeline resizes both before and after LoadAnnotations, so the frame '
            'of the boxes is unknown: move LoadAnnotations to the front.'
        )
    return 'original' if resized_before else 'input'
