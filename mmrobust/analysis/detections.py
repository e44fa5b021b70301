"""Stored detections and ground truth, the only input of this package.

Boxes are (x1, y1, x2, y2) in pixels of the ORIGINAL image, as a detector's
``test_step`` returns them and as annotation files have them, and masks lie on its
pixels; labels are the dataset's class indices, 0 to K-1. What is compared with what is
pycocotools' ``iou_type``: ``'bbox'``, boxes, or ``'segm'``, masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from .masks import Masks

IOU_TYPES = ('bbox', 'segm')


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image.

    Raises:
        ConfigError: if lengths differ or a number is not finite; pycocotools would
            count a box of NaN as a hit.
    """

    img_id: Any  # the dataset's id of the image, an int or a str
    bboxes: np.ndarray  # (N, 4) boxes in pixels of the original image
    scores: np.ndarray  # (N,) confidences, higher is surer
    labels: np.ndarray  # (N,) class indices
    masks: Masks | None = None  # N, if they are known

    def __post_init__(self) -> None:
        boxes, scores = _boxes(self.bboxes), np.asarray(self.scores).reshape(-1)
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        _check_masks(self.masks, len(labels), self.img_id)
        if not len(boxes) == len(scores) == len(labels):
            raise ConfigError(
                f'image {self.img_id}: {len(boxes)} boxes, {len(scores)} scores and '
                f'{len(labels)} labels do not belong together.'
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ConfigError(
                f'the detector returned boxes or scores that are not finite for image '
                f'{self.img_id}: no average precision exists for them.'
            )
        _set(self, bboxes=boxes, scores=scores, labels=labels)

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """The detections of at least this score."""
        keep = self.scores >= score
        return Detections(
            self.img_id,
            self.bboxes[keep],
            self.scores[keep],
            self.labels[keep],
            None if self.masks is None else self.masks[keep],
        )

    @classmethod
    def from_sample(cls, sample: Any, iou_type: str = 'bbox') -> Detections:
        """Reads mmdet's prediction for one image.

        Args:
            sample: a ``DetDataSample`` of ``test_step`` or its dict, with ``img_id``
                and ``pred_instances`` (``bboxes``, ``scores``, ``labels``; boxes
                scaled back to the original image, as mmdet's detectors do).
            iou_type: with ``'segm'`` its ``masks`` are read, pixels (N, H, W) or run
                lengths, and their own ``mask_scores`` where the model gives some, as
                mmdet's ``CocoMetric`` does. Boxes are then those around the masks,
                since models that predict masks alone leave theirs at 0.
        """
        found = sample.get('pred_instances')
        if iou_type == 'bbox':
            names = ('bboxes', 'scores', 'labels')
            boxes, scores, labels = (_array(found.get(name)) for name in names)
            return cls(sample.get('img_id'), boxes, scores, labels)
        masks = _masks(found.get('masks'))
        scores = found.get('mask_scores', None)
        scores = _array(found.get('scores') if scores is None else scores)
        labels = _array(found.get('labels'))
        return cls(sample.get('img_id'), masks.boxes(), scores, labels, masks)


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What is annotated in one image.

    Raises:
        ConfigError: if lengths differ or a number is not finite.
    """

    img_id: Any  # the dataset's id of the image
    bboxes: np.ndarray  # (M, 4) boxes in pixels of the original image
    labels: np.ndarray  # (M,) class indices
    ignore: np.ndarray  # (M,) bool, crowd or otherwise not to be counted
    areas: np.ndarray  # (M,) in square pixels, deciding between small, medium and large
    height: int  # of the image in pixels
    width: int  # of the image in pixels
    masks: Masks | None = None  # M, if they are known

    def __post_init__(self) -> None:
        boxes = _boxes(self.bboxes)
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        _check_masks(self.masks, len(labels), self.img_id)
        ignore = np.asarray(self.ignore, dtype=bool).reshape(-1)
        areas = np.asarray(self.areas, dtype=np.float64).reshape(-1)
        if not len(boxes) == len(labels) == len(ignore) == len(areas):
            raise ConfigError(
                f'image {self.img_id}: boxes, labels, ignore flags and areas of the '
                'ground truth have different lengths.'
            )
        if not (np.isfinite(boxes).all() and np.isfinite(areas).all()):
            raise ConfigError(f'the ground truth of image {self.img_id} is not finite.')
        _set(self, bboxes=boxes, labels=labels, ignore=ignore, areas=areas)

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_data_info(
        cls, info: Mapping[str, Any], iou_type: str = 'bbox'
    ) -> GroundTruth:
        """Reads an entry of an mmdet dataset.

        Args:
            info: what ``dataset.get_data_info(index)`` returns: ``img_id``,
                ``height``, ``width``, ``instances`` with ``bbox``, ``bbox_label``,
                ``ignore_flag``.
            iou_type: with ``'segm'`` also their ``mask``.

        mmdet keeps no annotated area, so the area is the box's, or the mask's. COCO's
        annotation files have the mask's, which is smaller than the box's: the figures
        per size then differ from a metric that reads the file (see ``from_coco``); the
        others do not.

        Raises:
            ConfigError: if an object has no mask.
        """
        instances = info.get('instances', [])
        boxes = _boxes([each['bbox'] for each in instances])
        masks = None
        if iou_type == 'segm':
            masks = _annotated([each.get('mask') for each in instances], info)
        return cls(
            img_id=info['img_id'],
            bboxes=boxes,
            labels=np.array([each['bbox_label'] for each in instances], dtype=int),
            ignore=np.array([each.get('ignore_flag', 0) for each in instances], bool),
            areas=box_areas(boxes) if masks is None else masks.areas(),
            height=info['height'],
            width=info['width'],
            masks=masks,
        )

    @classmethod
    def from_coco(
        cls, coco: Any, img_id: Any, cat_ids: Sequence[int], iou_type: str = 'bbox'
    ) -> GroundTruth:
        """Reads an image of a COCO annotation file, areas included.

        Args:
            coco: a ``pycocotools.coco.COCO`` (or mmdet's) of the file.
            img_id: the image's id in it.
            cat_ids: the dataset's ``cat_ids``: class index i has id ``cat_ids[i]``.
            iou_type: with ``'segm'`` also the masks, which all objects must have.

        Annotations of other categories are left out. Of the file's flags only
        ``iscrowd`` counts, as in pycocotools.
        """
        label_of = {cat_id: label for label, cat_id in enumerate(cat_ids)}
        found = coco.loadAnns(coco.getAnnIds(imgIds=[img_id]))
        found = [each for each in found if each['category_id'] in label_of]
        boxes = _boxes([each['bbox'] for each in found]).astype(np.float64)
        boxes[:, 2:] += boxes[:, :2]
        image = coco.loadImgs([img_id])[0]
        masks = None
        if iou_type == 'segm':
            info = {**image, 'img_id': img_id}
            masks = _annotated([each.get('segmentation') for each in found], info)
        return cls(
            img_id=img_id,
            bboxes=boxes,
            labels=np.array([label_of[each['category_id']] for each in found], int),
            ignore=np.array([each.get('iscrowd', 0) for each in found], bool),
            areas=np.array([each['area'] for each in found], float),
            height=image['height'],
            width=image['width'],
            masks=masks,
        )


def pair(
    truths: Sequence[GroundTruth], detections: Sequence[Detections], num_classes: int
) -> list[tuple[GroundTruth, Detections]]:
    """Brings ground truth and detections together, in the order of the image ids.

    The order matters: it decides between detections of equal score, here as in
    pycocotools.

    Raises:
        ConfigError: if the images differ, an id comes twice, or a label is not a
            class index.
    """
    if not truths:
        raise ConfigError('there is no image to evaluate.')
    found = {each.img_id: each for each in detections}
    ids = {each.img_id for each in truths}
    if len(ids) < len(truths) or len(found) < len(detections):
        raise ConfigError('an image id comes twice: every image needs its own.')
    if ids != set(found):
        odd = sorted(ids ^ set(found), key=str)
        raise ConfigError(
            f'ground truth and detections are of different images ({len(odd)} do not '
            f'agree, such as {odd[0]}): an image without detections needs an empty '
            'entry.'
        )
    labelled: list[Any] = [*truths, *detections]
    for each in labelled:
        if len(each) and not 0 <= each.labels.min() <= each.labels.max() < num_classes:
            raise ConfigError(
                f'image {each.img_id} has a label outside 0 to {num_classes - 1}: give '
                "the dataset's own classes."
            )
    ordered = sorted(truths, key=lambda each: each.img_id)
    return [(each, found[each.img_id]) for each in ordered]


def masks_of(known: Detections | GroundTruth) -> Masks:
    """The masks of an image.

    Raises:
        ConfigError: if nobody has given any.
    """
    if known.masks is None:
        raise ConfigError(f'there are no masks of image {known.img_id} to compare.')
    return known.masks


def xywh(boxes: np.ndarray) -> np.ndarray:
    """COCO's (x, y, width, height) in double precision, as mmdet computes them."""
    result = boxes.astype(np.float64)
    result[:, 2:] -= result[:, :2]
    return result


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(N,) areas in square pixels."""
    sides = xywh(boxes)[:, 2:]
    return sides[:, 0] * sides[:, 1]


def _boxes(values: Any) -> np.ndarray:
    boxes = np.asarray(values)
    if boxes.dtype.kind != 'f':
        boxes = boxes.astype(np.float64)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ConfigError(f'boxes must have shape (N, 4), not {boxes.shape}.')
    return boxes


def _annotated(segmentations: Sequence[Any], info: Mapping[str, Any]) -> Masks:
    """The masks of an image's annotations, all of which have to be there."""
    missing = sum(not each for each in segmentations)
    if missing:
        raise ConfigError(
            f'{missing} of the {len(segmentations)} objects of image {info["img_id"]} '
            'have no mask in the annotations.'
        )
    return Masks.from_annotations(segmentations, info['height'], info['width'])


def _masks(values: Any) -> Masks:
    """The masks of a prediction."""
    if values is None:
        raise ConfigError('the model predicts no masks.')
    if not isinstance(values, (list, tuple)):
        return Masks.from_pixels(_array(values))
    # As mmdet's encode_mask_results gives them.
    height, width = values[0]['size'] if values else (0, 0)
    return Masks.from_annotations(values, int(height), int(width))


def _check_masks(masks: Masks | None, count: int, img_id: Any) -> None:
    if masks is not None and len(masks) != count:
        raise ConfigError(
            f'image {img_id}: {len(masks)} masks and {count} labels do not belong '
            'together.'
        )


def _array(values: Any) -> np.ndarray:
    values = getattr(values, 'tensor', values)  # mmdet's box types hold one
    if hasattr(values, 'detach'):
        values = values.detach().cpu()
        # numpy has no bfloat16; float32 holds every half-precision number.
        values = values.float() if values.is_floating_point() else values
        values = values.numpy()
    return np.asarray(values)


def _set(target: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(target, name, value)
