"""Measures the damage that an image does to a detector's final detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from ..batch import with_images
from ..errors import ConfigError
from ..region import region_of
from ..utils.models import frozen

# All false boxes together weigh less than a tenth of one object that is well found.
FALSE_BOXES = 0.1


def damage(
    predicted: InstanceData, truth: InstanceData, ignored: InstanceData | None = None
) -> Tensor:
    """Returns a number that rises as detections get worse, before AP notices it.

    ``0.1 * F / (1 + F) - sum over objects of max(score * IoU)``

    - The maximum is over detections of the object's class, so it falls when the
      detection of an object loses confidence, moves, changes its class or vanishes.
      AP depends on score and IoU, too, but in steps, which hide most changes that a
      search has to build upon.
    - F, for false boxes, is the sum of ``(score * (1 - IoU))**2`` over detections,
      with the largest IoU with an object of their class. Squares, because only
      confident false boxes outrank true ones. It gives an attack something to do where
      there is no object.

    Args:
        predicted: detections with ``bboxes`` (n, 4), ``scores`` and ``labels`` (n,).
        truth: objects with ``bboxes`` (m, 4) and ``labels`` (m,), in the same frame.
        ignored: regions of crowds with ``bboxes`` and ``labels``. A detection of the
            class is no false box so far as it lies inside one.

    Returns:
        A scalar from ``-m`` (all objects found for sure, nothing else) up to 0.1.
    """
    # Not at the top: mmdet may be missing where there are classifiers only.
    from mmdet.structures.bbox import bbox_overlaps

    def overlaps(objects: InstanceData, mode: str) -> Tensor:
        same = predicted.labels[:, None] == objects.labels[None].to(predicted.labels)
        return same * bbox_overlaps(boxes, _boxes(objects).to(boxes), mode=mode)

    boxes, scores = _boxes(predicted), predicted.scores.float()
    found, true = scores.new_zeros(()), torch.zeros_like(scores)
    if len(scores) and len(truth):
        iou = overlaps(truth, 'iou')
        found = (scores[:, None] * iou).amax(0).sum()
        true = iou.amax(1)
    if len(scores) and ignored is not None and len(ignored):
        true = torch.maximum(true, overlaps(ignored, 'iof').amax(1))
    false = (scores * (1 - true)).square().sum()
    return FALSE_BOXES * false / (1 + false) - found


class DetectionOracle:
    """Answers an attack that asks for no gradients by what the detector gives out.

    The objective is :func:`damage`, of the detections that evaluation would score:
    after non-maximum suppression, thresholds and the limit on their number. Works
    inside and outside of :func:`mmrobust.objective.loss_mode`.

    Images go through the network one by one: in a batch, padding and the order of sums
    could tip the scales in a search that compares values.

    Args:
        model: the bare detector.
        data_batch: the batch whose images are attacked.
        samples: ground truth in the input frame, from
            :func:`mmrobust.frame.attack_samples`.

    Attributes:
        forwards: images that went through the network forwards.
        backwards: always 0.
        regions: which pixels of each image are attackable, see :mod:`mmrobust.region`.

    Raises:
        ConfigError: (when asked) if the model does not detect boxes.
    """

    def __init__(
        self, model: Any, data_batch: dict, samples: Sequence[BaseDataElement]
    ) -> None:
        self.model = model
        self.data_batch = data_batch
        self.samples = list(samples)
        self.regions = [region_of(sample) for sample in samples]
        self.forwards = 0
        self.backwards = 0

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """Damage (N,) that images (C, H, W) in pixel units do."""
        with torch.no_grad(), frozen(self.model):
            return torch.stack(
                [
                    self._damage(image, sample)
                    for image, sample in zip(images, self.samples, strict=True)
                ]
            )

    def value_and_grad(self, images: Sequence[Tensor]) -> NoReturn:
        """Refuses, always."""
        raise ConfigError(
            'detections after non-maximum suppression have no gradient: use an attack '
            "that needs none, like Square, or a loss such as objective='total'."
        )

    def _damage(self, image: Tensor, sample: BaseDataElement) -> Tensor:
        # The model writes into the samples; and it must not see the ground truth.
        shown = type(sample)(metainfo=sample.metainfo)
        if 'proposals' in sample:
            shown.set_field(sample.proposals.clone(), 'proposals')
        batch = with_images(self.data_batch, [image])
        batch['data_samples'] = [shown]
        data = self.model.data_preprocessor(batch, False)
        (output,) = self.model._run_forward(data, mode='predict')
        self.forwards += 1
        found = output.get('pred_instances', None)
        if found is None or not has_boxes(found):
            raise ConfigError(
                f'{type(self.model).__name__} does not detect boxes, and the objective '
                "'detections' reads them: use a loss such as objective='total'."
            )
        return damage(
            _in_input_frame(found, sample),
            sample.gt_instances,
            sample.get('ignored_instances', None),
        )


def _in_input_frame(found: InstanceData, sample: BaseDataElement) -> InstanceData:
    """Detections, which mmdet gives in the original image's frame, where truth is."""
    width_scale, height_scale = (float(s) for s in sample.get('scale_factor', (1, 1)))
    boxes = _boxes(found).float()
    scaled = boxes * boxes.new_tensor((width_scale, height_scale) * 2)
    return InstanceData(bboxes=scaled, scores=found.scores, labels=found.labels)


def has_boxes(found: InstanceData) -> bool:
    """Returns whether a detector's output for an image has boxes, or may have."""
    if 'bboxes' not in found or 'scores' not in found:
        return False
    # SOLO and its like leave the boxes of their masks at 0.
    return 'masks' not in found or not len(found) or bool(_boxes(found).any())


def _boxes(instances: InstanceData) -> Tensor:
    boxes = instances.bboxes
    boxes = boxes.tensor if hasattr(boxes, 'tensor') else boxes
    if boxes.shape[-1] != 4:
        raise ConfigError(
            f'boxes have {boxes.shape[-1]} numbers, and the objective '
            "'detections' knows upright ones with 4 only: use a loss such as "
            "objective='total'."
        )
    return boxes
