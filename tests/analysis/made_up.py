"""Invented ground truth and detections, with all that makes matching difficult."""

from __future__ import annotations

import cv2
import numpy as np

from mmrobust.analysis import Detections, GroundTruth

SIDE = 400


def boxes(rng, count):
    centre = rng.uniform(0, SIDE, (count, 2))
    half = rng.uniform(5, 90, (count, 2)) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def truth(rng, img_id, num_classes, most=6, crowd=0.15):
    count = int(rng.integers(0, most))  # some images are empty
    found = boxes(rng, count)
    sides = found[:, 2:] - found[:, :2]
    return GroundTruth(
        img_id=img_id,
        bboxes=found,
        labels=rng.integers(num_classes, size=count),
        ignore=rng.random(count) < crowd,
        # Like the area of a mask, less than the box's.
        areas=sides.prod(axis=1) * rng.uniform(0.5, 1, count),
        height=SIDE,
        width=SIDE,
    )


def detect(rng, real, num_classes, extra=5, strength=0.3, dtype=np.float32):
    """Detections of an image; strength 0 is a good detector, 1 a broken one."""
    repeat = rng.integers(0, 3, len(real))  # missed, once, twice
    repeat[rng.random(len(real)) < strength] = 0
    found = np.repeat(real.bboxes, repeat, axis=0)
    found = found + rng.normal(0, 2 + 8 * strength, found.shape)
    labels = np.repeat(real.labels, repeat)
    wrong = rng.random(len(labels)) < 0.1 + strength / 2
    labels = np.where(wrong, rng.integers(num_classes, size=len(labels)), labels)
    more = int(rng.integers(0, extra + 1))
    found = np.concatenate([found, boxes(rng, more)])
    labels = np.concatenate([labels, rng.integers(num_classes, size=more)])
    # Rounded, so that many scores are equal within and between images.
    scores = np.round(rng.random(len(labels)), 1 if rng.random() < 0.5 else 3)
    found = np.sort(found.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    return Detections(real.img_id, found.astype(dtype), scores.astype(dtype), labels)


def dataset(seed, num_images, num_classes, num_attacks=1, **options):
    """Ground truth, and one list of detections per attack."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(10 * num_images)[:num_images] + 3
    truths = [truth(rng, int(img_id), num_classes) for img_id in ids]
    truths[0] = truth(rng, truths[0].img_id, num_classes, most=1)  # empty for sure
    attacks = [
        [detect(rng, real, num_classes, **options) for real in truths]
        for _ in range(num_attacks)
    ]
    return truths, attacks


def one(boxes_, labels, scores=None, img_id=1, ignore=None):
    """Ground truth, or detections if there are scores, of one image."""
    array = np.array(boxes_, dtype=float).reshape(-1, 4)
    if scores is not None:
        return Detections(img_id, array, np.array(scores, float), np.array(labels))
    sides = array[:, 2:] - array[:, :2]
    return GroundTruth(
        img_id,
        array,
        np.array(labels),
        np.zeros(len(array), bool) if ignore is None else np.array(ignore),
        sides.prod(axis=1),
        SIDE,
        SIDE,
    )


def with_masks(rng, truths, attacks):
    """Objects as polygons and detections as pixels, whose masks are no boxes.

    Crowds are run lengths, as in COCO's files.

    Returns:
        mmdet's data infos of the images, and pixels (N, H, W) of each attack and image.
    """
    infos, pixels = [], [[] for _ in attacks]
    for index, real in enumerate(truths):
        instances = []
        for box, label, crowd in zip(
            real.bboxes, real.labels, real.ignore, strict=True
        ):
            corners = _corners(rng, box)
            mask = [corners.ravel().tolist()]
            if crowd:
                flat = _drawn(corners).T.ravel()
                ends = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
                mask = dict(size=[SIDE, SIDE], counts=np.diff(ends, prepend=0).tolist())
            instances.append(
                dict(
                    bbox=box.tolist(),
                    bbox_label=int(label),
                    ignore_flag=int(crowd),
                    mask=mask,
                )
            )
        infos.append(
            dict(img_id=real.img_id, height=SIDE, width=SIDE, instances=instances)
        )
        for mine, found in zip(pixels, attacks, strict=True):
            drawn = [_drawn(_corners(rng, box)) for box in found[index].bboxes]
            mine.append(np.array(drawn, bool).reshape(-1, SIDE, SIDE))
    return infos, pixels


def _corners(rng, box):
    """An octagon in a box, of which some corners are moved to its middle."""
    angle = np.arange(8) * np.pi / 4
    radius = np.where(rng.random(8) < 0.15, 0.5, 1.0)
    unit = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    return (box[:2] + box[2:]) / 2 + unit * (box[2:] - box[:2]) / 2


def _drawn(corners):
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    return cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 1)
