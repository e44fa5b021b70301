"""COCO's average precision: its full summary by pycocotools, and a fast mAP.

:class:`FastAP` computes mAP from match tables, fast enough for a thousand times.

Precision only matters where a detection hits at some threshold ("event"). All others,
the great majority, only count as errors ranked before an event. So a class needs

    C: hits up to each event,  F: errors up to it,  precision = C / (C + F),

the running maximum of the precision from the right, and the number of COCO's 101
recall levels that each hit adds. An image that is drawn several times just has that
weight in C and F: copies of a hit share the precision of the last of them. (This ranks
all copies of a detection before another of the same image with the very same score;
renamed copies of the image would alternate.)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .detections import Detections, GroundTruth, box_areas, masks_of, pair, xywh
from .matching import COCO_IOUS, MatchTable

# Levels of recall by their number, computed as pycocotools and mmdet do.
_LEVELS = {101: np.linspace(0.0, 1.0, 101), 11: np.arange(0, 1 + 1e-3, 0.1)}

_UNIT = 101

# mmdet's CocoMetric: mAP counts the best 100 detections of a class in an image,
# everything else the best 1000.
MAX_DETS = (100, 300, 1000)

_SIZES = {'s': 1, 'm': 2, 'l': 3}  # places in pycocotools' area ranges


class FastAP:
    """Average precision of a dataset, or of any weighting of its images.

    Args:
        table: the matches of the dataset.

    The values of COCO's tables are those of pycocotools with area 'all' and 100
    detections per image and class, also between detections of equal score.
    """

    def __init__(self, table: MatchTable) -> None:
        self.table = table
        self._classes = [_ranked(table, label) for label in range(table.num_classes)]

    def per_class(
        self, counts: np.ndarray | None = None, levels: bool = True
    ) -> np.ndarray:
        """Average precision of every class, over the table's IoU thresholds.

        Args:
            counts: (I,) how often each image is there, once by default.
            levels: take the mean over the table's levels of recall; otherwise over all
                of it, which is nearly the same and does not move in steps of a level.

        Returns:
            (K,) values in [0, 1], NaN where the class has no object.
        """
        table = self.table
        if counts is None:
            counts = np.ones(table.num_images, dtype=np.int64)
        objects = np.bincount(
            table.gt_label, counts[table.gt_image], table.num_classes
        ).astype(np.int64)
        result = np.full(table.num_classes, np.nan)
        for label in np.flatnonzero(objects):
            events = self._classes[label]
            weights = counts[events.image]
            errors = np.concatenate([[0], np.cumsum(counts[events.error_image])])
            hits = np.cumsum(events.hit * weights, axis=1)
            misses = np.cumsum(events.error * weights, axis=1)
            misses += errors[events.errors_before]
            points = table.points if levels else 0
            gains = recall_gains(hits, int(objects[label]), points)
            result[label] = area(hits, misses, gains)
        return result

    def mean(self, counts: np.ndarray | None = None, levels: bool = True) -> float:
        """mAP: the mean over the classes that have an object; NaN if none has."""
        per_class = self.per_class(counts, levels)
        there = ~np.isnan(per_class)
        return float(per_class[there].mean()) if there.any() else float('nan')


def mean_ap(table: MatchTable) -> float:
    """The mAP of a table, in [0, 1]; NaN if there is no object."""
    return FastAP(table).mean()


def area(hits: np.ndarray, misses: np.ndarray, gains: np.ndarray) -> float:
    """Interpolated average precision, mean over the IoU thresholds.

    Args:
        hits: (T, n) hits up to and with each event, in the order of the scores.
        misses: (T, n) errors up to and with each event.
        gains: (T, n) what each event adds, see :func:`recall_gains`.
    """
    # The tiny number is pycocotools' guard against 0 / 0.
    precision = hits / (hits + misses + np.spacing(1))
    from_right = precision[:, ::-1]
    np.maximum.accumulate(from_right, axis=1, out=from_right)
    return float(np.einsum('tn,tn', precision, gains)) / (_UNIT * len(hits))


def area_slope(hits: np.ndarray, misses: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Returns how the area falls with an error before an event.

    The area is convex in the errors (a sum of maxima of C / (C + F)), so that this
    slope times a number of errors is at most the change that they cause.

    Returns:
        (n + 1,) slope in an error just before each event, and after all (0).
    """
    total = hits + misses + np.spacing(1)
    precision = hits / total
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Each recall level takes its precision from the next event that is a maximum.
    summit = precision >= best
    levels = np.where(summit, np.cumsum(gains, axis=1), 0)
    levels = np.maximum.accumulate(levels, axis=1)
    levels[:, 1:] -= levels[:, :-1].copy()
    slope = -(levels * precision / total).sum(axis=0)
    suffix = np.append(np.cumsum(slope[::-1])[::-1], 0.0)
    return suffix / (_UNIT * len(hits))


def recall_gains(hits: np.ndarray, num_objects: int, points: int) -> np.ndarray:
    """(T, n) recall that each event adds, in units of a hundred-and-first.

    Args:
        hits: (T, n) hits up to and with each event.
        num_objects: of the class.
        points: see :class:`.MatchTable`.
    """
    if not points:
        return np.diff(hits, axis=1, prepend=0) * _UNIT / num_objects
    levels = recall_levels(num_objects, points)[hits]
    levels[:, 1:] -= levels[:, :-1].copy()
    return levels if points == _UNIT else levels * (_UNIT / points)


@lru_cache(maxsize=4096)
def recall_levels(num_objects: int, points: int = 101) -> np.ndarray:
    """(num_objects + 1,) number of recall levels that so many hits reach."""
    recall = np.arange(num_objects + 1) / num_objects
    levels = np.searchsorted(_LEVELS[points], recall, side='right')
    levels[0] = 0  # without a hit there is no precision at recall 0 either
    return levels


def split_events(hit: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits detections, given (T, D) flags.

    Returns:
        (D,) bool, the events; (D,) bool, those that are errors at every threshold.
        What is ignored at every threshold is neither.
    """
    everywhere = ~(hit | ignored).any(axis=0)
    return ~everywhere & ~ignored.all(axis=0), everywhere


@dataclass(frozen=True, eq=False)
class _Ranked:
    """One class in the order of the scores."""

    image: np.ndarray  # (n,) of each event
    hit: np.ndarray  # (T, n) bool
    error: np.ndarray  # (T, n) bool, the event is an error at this threshold
    errors_before: np.ndarray  # (n,) detections before it that are errors everywhere
    error_image: np.ndarray  # (m,) of those


def _ranked(table: MatchTable, label: int) -> _Ranked:
    place = np.flatnonzero(table.label == label)
    place = place[np.argsort(-table.score[place], kind='stable')]
    hit, ignored = table.hit[:, place], table.ignored[:, place]
    event, everywhere = split_events(hit, ignored)
    return _Ranked(
        image=table.image[place[event]],
        hit=hit[:, event],
        error=~(hit | ignored)[:, event],
        errors_before=np.cumsum(everywhere)[event],
        error_image=table.image[place[everywhere]],
    )


# ------------------------------------------------------------ the full summary


@dataclass(frozen=True, eq=False)
class CocoSummary:
    """COCO's average precisions, each in [0, 1], NaN where there is no object."""

    # mAP, mAP_50, mAP_75, mAP_s, mAP_m, mAP_l, with the meaning and the values of
    # mmdet's CocoMetric (small: area up to 32^2 square pixels of the original image,
    # medium up to 96^2), unrounded
    metrics: dict[str, float]
    per_class: np.ndarray  # (K,) average precision of each class


def coco_ap(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    iou_type: str = 'bbox',
) -> CocoSummary:
    """COCO's summary of boxes, or of masks.

    Args:
        truths: all images of the dataset, also those without objects.
        detections: of the same images, in any order.
        num_classes: K, classes of the dataset.
        iou_type: ``'bbox'`` or ``'segm'``.

    Returns:
        What mmdet's ``CocoMetric(metric=iou_type)`` computes from the same data before
        it rounds, with NaN for its -1. Without a single detection the figures are 0,
        where ``CocoMetric`` returns none.

    Raises:
        ConfigError: if the images do not agree (see ``pair``), or masks are missing.
    """
    pairs = pair(truths, detections, num_classes)
    areas = [truth.areas for truth, _ in pairs]
    found = [
        masks_of(each).areas() if iou_type == 'segm' else box_areas(each.bboxes)
        for _, each in pairs
    ]
    precision = precision_by(pairs, num_classes, areas, found, iou_type=iou_type)
    at_most = precision[..., -1]
    metrics = {'mAP': mean_precision(precision[:, :, :, 0, 0])}
    for iou in (50, 75):
        place = int(np.argmin(np.abs(COCO_IOUS - iou / 100)))
        metrics[f'mAP_{iou}'] = mean_precision(at_most[place, :, :, 0])
    for size, area in _SIZES.items():
        metrics[f'mAP_{size}'] = mean_precision(at_most[:, :, :, area])
    classes = range(num_classes)
    per_class = [mean_precision(at_most[:, :, label, 0]) for label in classes]
    return CocoSummary(metrics, np.array(per_class))


def precision_by(
    pairs: Sequence[tuple[GroundTruth, Detections]],
    num_classes: int,
    of_objects: Sequence[np.ndarray],
    of_detections: Sequence[np.ndarray],
    ranges: Sequence[tuple[float, float]] | None = None,
    iou_type: str = 'bbox',
) -> np.ndarray:
    """Computes COCO's precision over ranges of a size, which COCO takes areas for.

    Args:
        pairs: images, see ``pair``.
        num_classes: K, classes of the dataset.
        of_objects: the size (M,) of the objects of each image.
        of_detections: the same of its detections (N,).
        ranges: pairs of the smallest and the largest size, both included; by default
            COCO's areas.
        iou_type: ``'bbox'`` or ``'segm'``.

    Returns:
        Precision by IoU, level of recall, class, range and most detections of a class
        in an image (``MAX_DETS``); -1 where there is no object.
    """
    images: list[dict] = []
    objects: list[dict] = []
    found: list[dict] = []
    rows = zip(pairs, of_objects, of_detections, strict=True)
    for index, ((truth, detected), mine, theirs) in enumerate(rows):
        images.append({'id': index, 'height': truth.height, 'width': truth.width})
        crowd = truth.ignore.astype(int)
        _add(objects, iou_type, index, truth, area=mine, iscrowd=crowd)
        _add(found, iou_type, index, detected, area=theirs, score=detected.scores)
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = COCOeval(
            _dataset(images, objects, num_classes),
            _dataset(images, found, num_classes),
            iou_type,
        )
        # Of as few as there are, limits beyond the first change nothing but the time.
        most = max((_most(each.labels) for _, each in pairs), default=0)
        limits = MAX_DETS[:1] if most <= MAX_DETS[0] else MAX_DETS
        evaluation.params.maxDets = list(limits)
        if ranges is not None:
            evaluation.params.areaRng = [list(each) for each in ranges]
            evaluation.params.areaRngLbl = [str(each) for each in ranges]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: np.ndarray = evaluation.eval['precision']
    return np.broadcast_to(precision, (*precision.shape[:-1], len(MAX_DETS)))


def _most(labels: np.ndarray) -> int:
    """Returns how many of a class there are at most."""
    return int(np.unique(labels, return_counts=True)[1].max(initial=0))


def mean_precision(precision: np.ndarray) -> float:
    """The mean of what :func:`precision_by` gives; NaN where there is no object."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else float('nan')


def _add(
    entries: list[dict],
    iou_type: str,
    image: int,
    boxes: GroundTruth | Detections,
    **more: np.ndarray,
) -> None:
    """Adds an image's boxes, and masks if they count, to the annotations of a file."""
    columns = {'category_id': boxes.labels, 'bbox': xywh(boxes.bboxes), **more}
    if iou_type == 'segm':
        columns['segmentation'] = np.array(masks_of(boxes).rles(), dtype=object)
    for row in zip(*(values.tolist() for values in columns.values()), strict=True):
        # Ids from 1: pycocotools takes an object of id 0 for no match.
        common = {'id': len(entries) + 1, 'image_id': image, 'iscrowd': 0}
        entries.append({**common, **dict(zip(columns, row, strict=True))})


def _dataset(images: list[dict], annotations: list[dict], num_classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': k, 'name': str(k)} for k in range(num_classes)],
    }
    coco.createIndex()
    return coco
