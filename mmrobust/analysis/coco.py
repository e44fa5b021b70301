"""The COCO summary of stored detections, by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .detections import Detections, GroundTruth, box_areas, pair, xywh

# mmdet's CocoMetric: mAP counts the best 100 detections of a class in an image,
# everything else the best 1000.
MAX_DETS = (100, 300, 1000)

_SIZES = {'s': 1, 'm': 2, 'l': 3}  # places in pycocotools' area ranges


@dataclass(frozen=True, eq=False)
class CocoSummary:
    """COCO's average precisions, each in [0, 1], NaN where there is no object.

    Attributes:
        metrics: ``mAP``, ``mAP_50``, ``mAP_75``, ``mAP_s``, ``mAP_m``, ``mAP_l``, with
            the meaning and the values of mmdet's ``CocoMetric`` (small: area up to
            32^2 square pixels of the original image, medium up to 96^2), unrounded.
        per_class: (K,) average precision of each class.
    """

    metrics: dict[str, float]
    per_class: np.ndarray


@dataclass(frozen=True, eq=False)
class APDrop:
    """What an attack takes away, overall, by object size and by class.

    Attributes:
        absolute: benign minus attacked, per metric; below 0 where the attack helped.
        relative: the same as a share of benign; NaN where benign is 0.
        per_class: (K,) benign minus attacked.
        per_class_relative: (K,) as a share of benign.
    """

    absolute: dict[str, float]
    relative: dict[str, float]
    per_class: np.ndarray
    per_class_relative: np.ndarray


def coco_ap(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
) -> CocoSummary:
    """COCO's bounding-box summary.

    Args:
        truths: all images of the dataset, also those without objects.
        detections: of the same images, in any order.
        num_classes: K, classes of the dataset.

    Returns:
        What mmdet's ``CocoMetric(metric='bbox')`` computes from the same data before
        it rounds, with NaN for its -1. Without a single detection the figures are 0,
        where ``CocoMetric`` returns none.

    Raises:
        ConfigError: if the images do not agree (see ``pair``).
    """
    images: list[dict] = []
    objects: list[dict] = []
    found: list[dict] = []
    for index, (truth, detected) in enumerate(pair(truths, detections, num_classes)):
        images.append({'id': index, 'height': truth.height, 'width': truth.width})
        areas = truth.areas.tolist()
        for place, box in enumerate(xywh(truth.bboxes).tolist()):
            crowd = int(truth.ignore[place])
            label = int(truth.labels[place])
            objects.append(_entry(objects, index, label, box, areas[place], crowd))
        areas = box_areas(detected.bboxes).tolist()
        for place, box in enumerate(xywh(detected.bboxes).tolist()):
            label, score = int(detected.labels[place]), float(detected.scores[place])
            entry = _entry(found, index, label, box, areas[place], 0)
            found.append({**entry, 'score': score})
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = COCOeval(
            _dataset(images, objects, num_classes),
            _dataset(images, found, num_classes),
            'bbox',
        )
        evaluation.params.maxDets = list(MAX_DETS)
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU, recall, class, area, detections per image and class)
    precision = evaluation.eval['precision']
    ious = evaluation.params.iouThrs
    at_most = precision[..., -1]
    metrics = {'mAP': _mean(precision[:, :, :, 0, 0])}
    for iou in (50, 75):
        place = int(np.argmin(np.abs(ious - iou / 100)))
        metrics[f'mAP_{iou}'] = _mean(at_most[place, :, :, 0])
    for size, area in _SIZES.items():
        metrics[f'mAP_{size}'] = _mean(at_most[:, :, :, area])
    per_class = [_mean(at_most[:, :, label, 0]) for label in range(num_classes)]
    return CocoSummary(metrics, np.array(per_class))


def ap_drop(benign: CocoSummary, attacked: CocoSummary) -> APDrop:
    """Compares two summaries of the same dataset."""
    absolute, relative = {}, {}
    for name, value in benign.metrics.items():
        absolute[name] = value - attacked.metrics[name]
        relative[name] = float(_share(absolute[name], value))
    per_class = benign.per_class - attacked.per_class
    return APDrop(absolute, relative, per_class, _share(per_class, benign.per_class))


def _share(part: np.ndarray | float, whole: np.ndarray | float) -> np.ndarray:
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(np.asarray(whole) > 0, np.divide(part, whole), np.nan)


def _mean(precision: np.ndarray) -> float:
    there = precision[precision > -1]
    return float(there.mean()) if there.size else float('nan')


def _entry(
    earlier: list, image: int, label: int, box: list, area: float, crowd: int
) -> dict:
    # Ids from 1: pycocotools takes an object of id 0 for no match.
    return {
        'id': len(earlier) + 1,
        'image_id': image,
        'category_id': label,
        'bbox': box,
        'area': area,
        'iscrowd': crowd,
    }


def _dataset(images: list[dict], annotations: list[dict], num_classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': k, 'name': str(k)} for k in range(num_classes)],
    }
    coco.createIndex()
    return coco
