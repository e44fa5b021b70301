"""Scores how well the objects of a single image are still detected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError
from .detections import Detections, GroundTruth
from .matching import MatchTable, check_same_images, match_detections

BROKEN_FRACTION = 0.1


def image_scores(table: MatchTable) -> np.ndarray:
    """Scores every image by itself, from 0 (nothing is right) to 1 (all is).

    With a confidence threshold t the image has TP hits, FP errors and FN objects
    without a hit. The score is the Jaccard index

        TP / (TP + FP + FN), and 1 where there is neither object nor detection,

    averaged over all t in [0, 1] and over the table's IoU thresholds. Detections that
    COCO ignores (crowd) do not enter.

    Why this one. It has no parameter and needs no other image. Every way to fail
    lowers it: a missed object, a wrong class or a displaced box loses a hit (the
    latter two also add an error), a hallucination or duplicate adds an error, each
    as much as its confidence says, so that the many detections of 0.05 that mmdet's
    detectors return hardly count. Confidence is in it because mAP ranks detections
    across images: an attack that only pushes down the scores of right detections, or
    pushes up those of wrong ones, lowers mAP although the image's own ranking, and so
    an average precision of the image alone, may not change. An image without objects
    gets 1 minus the score of its surest error, with no rule of its own.

    What it is not: it is no mAP. It knows nothing of rare classes or of other images'
    scores; a detector that is right but never sure does not reach 1. Compare it
    between attacks on one detector, not between detectors.

    Returns:
        (I,) scores in [0, 1], in the order of ``table.img_ids``. Confidences outside
        [0, 1] count as the nearer bound.
    """
    order = np.lexsort((-table.score, table.image))
    image = table.image[order]
    confidence = np.clip(table.score[order], 0.0, 1.0)
    objects = np.bincount(table.gt_image, minlength=table.num_images)
    hits = _running_sum(table.hit[:, order], image)
    errors = _running_sum((~table.hit & ~table.ignored)[:, order], image)
    # From each detection's confidence down to the next one's these are the numbers.
    last = np.append(image[1:] != image[:-1], True)[: len(image)]
    width = confidence - np.where(last, 0.0, np.append(confidence[1:], 0.0))
    total = objects[image] + errors
    index = np.where(total > 0, hits / np.maximum(total, 1), 1.0).mean(axis=0)
    scores = np.bincount(image, index * width, table.num_images)
    highest = np.zeros(table.num_images)
    np.maximum.at(highest, image, confidence)
    # With a threshold above all detections, only an image without objects is right.
    return np.clip(scores + (objects == 0) * (1.0 - highest), 0.0, 1.0)


def image_score(
    truth: GroundTruth, found: Detections, num_classes: int, iou_type: str = 'bbox'
) -> float:
    """The score of one image (see ``image_scores``)."""
    table = match_detections([truth], [found], num_classes, iou_type=iou_type)
    return float(image_scores(table)[0])


def broken(
    attacked: np.ndarray, benign: np.ndarray, fraction: float = BROKEN_FRACTION
) -> np.ndarray:
    """Which images an attack has broken: further attacks need not try them.

    An image is broken when its score is at most a fraction of its benign score (or 0;
    an image that scores 0 without an attack is broken from the start). The benign
    score is the measure because confidences differ between detectors and images. With
    the default, what a later attack could still take from a broken image is a tenth
    of what the image had.

    Args:
        attacked: (I,) scores under the attacks so far.
        benign: (I,) scores without attack.
        fraction: in [0, 1).

    Returns:
        (I,) bool.

    Raises:
        ConfigError: if the fraction is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f'fraction must be in [0, 1), not {fraction}.')
    return attacked <= fraction * benign


def worst_per_image(tables: Sequence[MatchTable]) -> tuple[np.ndarray, np.ndarray]:
    """Chooses for each image the attack with the lowest score.

    Args:
        tables: one per attack, of the same images.

    Returns:
        (I,) index of the attack, the first of equals, and (I,) its score.

    Raises:
        ConfigError: if the tables are not of the same images and objects.
    """
    check_same_images(tables)
    scores = np.stack([image_scores(table) for table in tables])
    return scores.argmin(axis=0), scores.min(axis=0)


def _running_sum(flags: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(T, D) sums along the detections, starting anew at each image."""
    total = np.cumsum(flags, axis=1)
    first = np.searchsorted(image, image, side='left')
    before = np.concatenate([np.zeros((len(flags), 1), total.dtype), total], axis=1)
    return total - before[:, first]
