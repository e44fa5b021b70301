"""Counts the kinds of errors that an attack causes.

The types follow TIDE (Bolya et al., arXiv 2008.08115, section 2.2) with its thresholds:
from an IoU of 0.5 a detection has the object's place, below 0.1 it lies on background.
Counts are given, not TIDE's effect of each type on mAP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .detections import Detections, GroundTruth, pair
from .matching import MAX_DETS, assign, overlaps, uncounted

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1

# What mmdet draws by default, so what people see. Detectors return boxes down to 0.05
# or lower, nearly all of which would count as hallucinations.
SCORE_THR = 0.3


@dataclass(frozen=True)
class ErrorCounts:
    """Detections and objects by what became of them.

    Every detection that is counted is one of: correct, duplicate, misclassified,
    mislocalised, both, hallucinated, ignored. Every object that is counted is one of:
    found, misclassified, mislocalised, missed.
    """

    correct: int = 0  # hits an object of its class; equals objects_found
    # has the place and class of an object that a surer detection has
    duplicate: int = 0
    misclassified: int = 0  # has the place of an object of another class
    mislocalised: int = 0  # right class, but an IoU between 0.1 and 0.5
    both: int = 0  # wrong class and an IoU between 0.1 and 0.5
    hallucinated: int = 0  # on background, an IoU below 0.1 with every object
    ignored: int = 0  # on a crowd of its class, neither right nor wrong
    objects_found: int = 0  # hit by a detection of their class
    # not found, and a misclassified detection is on them
    objects_misclassified: int = 0
    # not found, none such, and a mislocalised one is on them
    objects_mislocalised: int = 0
    missed: int = 0  # not found, and neither of the two


def count_errors(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    score_thr: float = SCORE_THR,
    iou_type: str = 'bbox',
) -> ErrorCounts:
    """Counts the errors of a detector on a dataset.

    A detection that fits several types has the one of the larger overlap, and of its
    own class before another's: duplicate, misclassified, mislocalised, both,
    hallucinated. What is right or ignored is decided by COCO's matching at IoU 0.5.

    Args:
        truths: all images of the dataset, also those without objects.
        detections: of the same images, in any order.
        num_classes: K, classes of the dataset.
        score_thr: detections below it do not exist; in [0, 1].
        iou_type: ``'bbox'`` compares boxes, ``'segm'`` masks.

    Raises:
        ConfigError: if the threshold is out of range or the images do not agree.
    """
    if not 0 <= score_thr <= 1:
        raise ConfigError(f'score_thr must be in [0, 1], not {score_thr}.')
    total: Counter[str] = Counter()
    for truth, found in pair(truths, detections, num_classes):
        total += _count(truth, found.above(score_thr), iou_type)
    return ErrorCounts(**total)


def _count(truth: GroundTruth, found: Detections, iou_type: str) -> Counter[str]:
    overlap = overlaps(found, truth, iou_type)
    # A column for "no object", so that every maximum exists.
    overlap = np.concatenate([overlap, np.zeros((len(found), 1))], axis=1)
    labels = np.append(truth.labels, -1)
    free = ~truth.ignore
    status = np.zeros(len(truth), dtype=np.int64)  # 0 missed, higher ones win
    counts: Counter[str] = Counter()
    for label in np.unique(found.labels):
        place = np.flatnonzero(found.labels == label)
        place = place[np.argsort(-found.scores[place], kind='stable')][:MAX_DETS]
        same = np.flatnonzero(truth.labels == label)
        partner = assign(
            overlap[np.ix_(place, same)],
            truth.ignore[same],
            np.array([FOREGROUND_IOU]),
        )[0]
        inside_out = uncounted(found, iou_type)[place]
        for row, mine, odd in zip(place, partner, inside_out, strict=True):
            if mine >= 0:
                target = int(same[mine])
                kind = 'correct' if free[target] else 'ignored'
            elif odd:
                kind, target = 'ignored', -1
            else:
                kind, target = _mistake(overlap[row], labels == label)
            counts[kind] += 1
            rank = _CLAIMS.get(kind, 0)
            if rank and target < len(truth):
                status[target] = max(status[target], rank)
    of_objects = np.bincount(status[free], minlength=4).tolist()
    return counts + Counter(dict(zip(_OUTCOMES, of_objects, strict=True)))


# What becomes of an object, from nothing to the best that a detection makes of it.
_OUTCOMES = ('missed', 'objects_mislocalised', 'objects_misclassified', 'objects_found')
_CLAIMS = {'mislocalised': 1, 'misclassified': 2, 'correct': 3}


def _mistake(overlap: np.ndarray, same: np.ndarray) -> tuple[str, int]:
    """The type of a detection without a match, and the object it is about."""
    own = int(np.argmax(np.where(same, overlap, 0.0)))
    other = int(np.argmax(np.where(same, 0.0, overlap)))
    own_overlap = overlap[own] if same[own] else 0.0
    other_overlap = 0.0 if same[other] else overlap[other]
    if own_overlap >= FOREGROUND_IOU:
        return 'duplicate', own
    if other_overlap >= FOREGROUND_IOU:
        return 'misclassified', other
    if own_overlap >= BACKGROUND_IOU:
        return 'mislocalised', own
    if other_overlap >= BACKGROUND_IOU:
        return 'both', other
    return 'hallucinated', -1
