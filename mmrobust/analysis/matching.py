"""Matches detections with objects: COCO's matching, once per image and attack.

Everything that needs average precision many times over (worst cases, intervals) works
on these tables, because the matching of an image does not depend on other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError
from .detections import Detections, GroundTruth, box_areas, masks_of, pair, xywh

# COCO's intersection-over-union thresholds, computed as pycocotools does.
COCO_IOUS: np.ndarray = np.linspace(0.5, 0.95, 10)

# The best detections of a class in an image that mAP counts.
MAX_DETS = 100

_LARGEST = 1e10  # square pixels, the end of COCO's area range 'all'


@dataclass(frozen=True, eq=False)
class MatchTable:
    """The matches of a dataset under one attack.

    Detections stand in the order of the images and, within an image and class, of
    falling scores: a stable sort by score gives pycocotools' ranking.
    """

    img_ids: tuple  # of the I images; image and gt_image count along them
    num_classes: int  # K
    image: np.ndarray  # (D,) index of the detection's image
    label: np.ndarray  # (D,) class of the detection
    score: np.ndarray  # (D,) its confidence
    # (T, D) bool, it hits an object of its class at the T IoU thresholds
    hit: np.ndarray
    # (T, D) bool, it counts neither as a hit nor as an error (crowd)
    ignored: np.ndarray
    gt_image: np.ndarray  # (G,) image of each object that counts
    gt_label: np.ndarray  # (G,) class of each object that counts
    # Over how many levels of recall precision is averaged: COCO's 101, the 11 of VOC
    # 2007, or 0, over all of it, as VOC has it since 2010.
    points: int = 101

    @property
    def num_images(self) -> int:
        """I, the number of images."""
        return len(self.img_ids)


def match_detections(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    ious: np.ndarray = COCO_IOUS,
    iou_type: str = 'bbox',
) -> MatchTable:
    """Matches the detections of a dataset, by COCO's rules for all object sizes.

    Args:
        truths: all images of the dataset, also those without objects.
        detections: of the same images, in any order.
        num_classes: K, classes of the dataset.
        ious: (T,) thresholds, in [0, 1].
        iou_type: ``'bbox'`` compares boxes, ``'segm'`` masks.

    Raises:
        ConfigError: if the images do not agree, or masks are missing.
    """
    pairs = pair(truths, detections, num_classes)
    places, hits, ignored = [], [], []
    for truth, found in pairs:
        place, hit, ignore = match_image(truth, found, ious, iou_type)
        places.append(place)
        hits.append(hit)
        ignored.append(ignore)
    counted = [~truth.ignore for truth, _ in pairs]
    index = np.arange(len(pairs))
    return MatchTable(
        img_ids=tuple(truth.img_id for truth, _ in pairs),
        num_classes=num_classes,
        image=np.repeat(index, [len(place) for place in places]),
        label=_join([d.labels[p] for (_, d), p in zip(pairs, places, strict=True)]),
        score=_join(
            [d.scores[p] for (_, d), p in zip(pairs, places, strict=True)]
        ).astype(np.float64),
        hit=np.concatenate(hits, axis=1),
        ignored=np.concatenate(ignored, axis=1),
        gt_image=np.repeat(index, [int(keep.sum()) for keep in counted]),
        gt_label=_join([t.labels[k] for (t, _), k in zip(pairs, counted, strict=True)]),
    )


def match_image(
    truth: GroundTruth,
    found: Detections,
    ious: np.ndarray = COCO_IOUS,
    iou_type: str = 'bbox',
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches the detections of one image.

    In the order of their scores, detections take the free object of their class with
    which they overlap most; failing that, an ignored one, which any number may share
    and with which the overlap is counted as a share of the detection.

    Returns:
        (n,) the places of the detections that count, class by class and in each by
        falling score; (T, n) bool hits; (T, n) bool ignored.
    """
    places, hits, ignored = [], [], []
    overlap = overlaps(found, truth, iou_type)
    odd = uncounted(found, iou_type)
    for label in np.unique(found.labels):
        place = np.flatnonzero(found.labels == label)
        place = place[np.argsort(-found.scores[place], kind='stable')][:MAX_DETS]
        same = truth.labels == label
        partner = assign(overlap[place][:, same], truth.ignore[same], ious)
        ignore = (partner >= 0) & np.append(truth.ignore[same], False)[partner]
        hit = (partner >= 0) & ~ignore
        ignore |= (partner < 0) & odd[place]
        places.append(place)
        hits.append(hit)
        ignored.append(ignore)
    if not places:
        nothing = np.zeros((len(ious), 0), bool)
        return np.zeros(0, int), nothing, nothing
    return _join(places), np.concatenate(hits, 1), np.concatenate(ignored, 1)


def overlaps(found: Detections, truth: GroundTruth, iou_type: str) -> np.ndarray:
    """(N, M) overlaps of boxes or masks; with a crowd, the detection's share in it.

    Raises:
        ConfigError: if masks are to be compared that are not there or do not fit.
    """
    if iou_type == 'segm':
        return masks_of(found).ious(masks_of(truth), truth.ignore)
    return box_ious(found.bboxes, truth.bboxes, truth.ignore)


def box_ious(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(N, M) overlaps by pycocotools; with a crowd, the share of the box inside it."""
    if not len(boxes) or not len(objects):
        return np.zeros((len(boxes), len(objects)))
    return coco_mask.iou(xywh(boxes), xywh(objects), crowd.astype(np.uint8).tolist())


def assign(overlap: np.ndarray, ignore: np.ndarray, ious: np.ndarray) -> np.ndarray:
    """Matches the detections of one class in one image to its objects.

    Args:
        overlap: (n, M), the detections by falling score.
        ignore: (M,) bool.
        ious: (T,) thresholds.

    Returns:
        (T, n) index of the object, -1 for none.
    """
    partner = np.full((len(ious), len(overlap)), -1)
    if not overlap.size:
        return partner
    least = np.minimum(ious, 1 - 1e-10)[:, None]  # pycocotools' guard for IoU 1
    free = np.ones((len(ious), len(ignore)), bool)
    # Only detections that reach the lowest threshold can match anything.
    for place in np.flatnonzero(overlap.max(axis=1) >= least.min()):
        possible = free & (overlap[place] >= least)
        # Any object that counts goes before any ignored one.
        possible &= ~ignore | ~(possible & ~ignore).any(axis=1, keepdims=True)
        rows = np.flatnonzero(possible.any(axis=1))
        # The last of equals, as pycocotools takes it.
        rated = np.where(possible[rows, ::-1], overlap[place, ::-1], -1.0)
        chosen = len(ignore) - 1 - np.argmax(rated, axis=1)
        free[rows, chosen] = ignore[chosen]
        partner[rows, place] = chosen
    return partner


def uncounted(found: Detections, iou_type: str) -> np.ndarray:
    """(N,) bool: what pycocotools takes for no error: boxes that are inside out."""
    if iou_type == 'segm':
        return np.zeros(len(found), bool)
    areas = box_areas(found.bboxes)
    return (areas < 0) | (areas > _LARGEST)


def combine(tables: Sequence[MatchTable], assignment: np.ndarray) -> MatchTable:
    """The table in which each image comes from the attack assigned to it.

    Args:
        tables: one per attack, of the same images.
        assignment: (I,) index of an attack for each image.

    Raises:
        ConfigError: if the tables are not of the same images and objects.
    """
    check_same_images(tables)
    parts = [
        _columns(table, assignment[table.image] == number)
        for number, table in enumerate(tables)
    ]
    order = np.argsort(np.concatenate([p['image'] for p in parts]), kind='stable')
    found = parts[0].copy()
    for key in found:
        found[key] = np.concatenate([part[key] for part in parts], -1)[..., order]
    return replace(tables[0], **found)


def check_same_images(tables: Sequence[MatchTable]) -> None:
    """Raises a ConfigError unless all tables have the same images and objects."""
    if not tables:
        raise ConfigError('there is no attack to choose from.')
    first = tables[0]
    for table in tables[1:]:
        if (
            table.img_ids != first.img_ids
            or table.num_classes != first.num_classes
            or len(table.hit) != len(first.hit)
            or table.points != first.points
            or not np.array_equal(table.gt_image, first.gt_image)
            or not np.array_equal(table.gt_label, first.gt_label)
        ):
            raise ConfigError(
                'the attacks were evaluated on different images or ground truth: '
                'compare only runs on the same data.'
            )


def restrict(table: MatchTable, images: np.ndarray) -> MatchTable:
    """The table of some of the images, which keep their order.

    Args:
        table: of I images.
        images: (I,) bool, those that stay.
    """
    found, objects = _columns(table, images[table.image]), images[table.gt_image]
    place = np.cumsum(images) - 1
    found['image'] = place[found['image']]
    return replace(
        table,
        img_ids=tuple(table.img_ids[index] for index in np.flatnonzero(images)),
        gt_image=place[table.gt_image[objects]],
        gt_label=table.gt_label[objects],
        **found,
    )


def _columns(table: MatchTable, keep: np.ndarray) -> dict[str, Any]:
    """Returns what a table holds of some detections, (D,) bool."""
    names = ('image', 'label', 'score', 'hit', 'ignored')
    return {name: getattr(table, name)[..., keep] for name in names}


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts]) if parts else np.zeros(0, int)
