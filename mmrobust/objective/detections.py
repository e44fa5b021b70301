"""Measures the damage that an image does to a detector's final detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from ..batch import with_images
from ..errors import ConfigError
from ..frame import TO_INPUT, object_boxes
from ..geometry import Affine
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
    scores = predicted.scores.float()
    found, true = scores.new_zeros(()), torch.zeros_like(scores)
    if len(scores) and len(truth):
        iou = overlaps(predicted, truth, 'iou')
        found = (scores[:, None] * iou).amax(0).sum()
        true = iou.amax(1)
    if len(scores) and ignored is not None and len(ignored):
        true = torch.maximum(true, overlaps(predicted, ignored, 'iof').amax(1))
    false = (scores * (1 - true)).square().sum()
    return FALSE_BOXES * false / (1 + false) - found


def overlaps(predicted: InstanceData, objects: InstanceData, mode: str) -> Tensor:
    """Returns overlaps (n, m) of predictions and objects, 0 for those of other classes.

    Args:
        predicted: n boxes with labels.
        objects: m boxes with labels, in the same frame.
        mode: ``'iou'``, or ``'iof'`` for shares of the predictions.
    """
    # Not at the top: mmdet may be missing where there are classifiers only.
    from mmdet.structures.bbox import bbox_overlaps

    boxes = _boxes(predicted)
    same = predicted.labels[:, None] == objects.labels[None].to(predicted.labels)
    return same * bbox_overlaps(boxes, _boxes(objects).to(boxes), mode=mode)


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
        self.boxes = [object_boxes(sample) for sample in samples]
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
        batch = with_images(self.data_batch, [image])
        batch['data_samples'] = [without_truth(sample)]
        data = self.model.data_preprocessor(batch, False)
        (output,) = self.model._run_forward(data, mode='predict')
        self.forwards += 1
        return damage(
            in_input_frame(boxes_of(output, self.model), sample),
            sample.gt_instances,
            sample.get('ignored_instances', None),
        )


def without_truth(sample: BaseDataElement) -> BaseDataElement:
    """Returns a sample to predict on, which the model may write into.

    All that a project keeps in it comes along, but for the ground truth.
    """
    shown = type(sample)(metainfo=sample.metainfo)
    for key, value in sample.items():
        if key != 'ignored_instances' and not key.startswith('gt_'):
            shown.set_field(value.clone() if hasattr(value, 'clone') else value, key)
    return shown


def boxes_of(output: BaseDataElement, model: Any) -> InstanceData:
    """Returns what a model has detected.

    Raises:
        ConfigError: if it does not detect boxes.
    """
    found: InstanceData | None = output.get('pred_instances', None)
    if found is None or not has_boxes(found):
        raise ConfigError(
            f'{type(model).__name__} does not detect boxes, which this objective '
            "reads: use a loss such as objective='total'."
        )
    return found


def in_input_frame(found: InstanceData, sample: BaseDataElement) -> InstanceData:
    """Detections, which mmdet gives in the original image's frame, where truth is."""
    to_input = sample.get(TO_INPUT, None)
    to_input = to_input or Affine.scaling(*sample.get('scale_factor', (1, 1)))
    boxes = _boxes(found).float()
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    matrix, shift = map(boxes.new_tensor, (to_input.matrix, to_input.shift))
    corners = corners @ matrix.T + shift
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    return InstanceData(bboxes=boxes, scores=found.scores, labels=found.labels)


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
