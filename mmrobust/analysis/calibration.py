"""How well boxes and scores fit together: LRP, optimal LRP and LaECE.

The localisation recall precision error (Oksuz et al., arXiv 2011.10772) of a class is
the mean, over hits, false and missed ones, of what is wrong with each: of a hit
``(1 - IoU) / (1 - tau)``, of the others 1. Its smallest value over all score thresholds
is the optimal LRP. The localisation-aware calibration error (Oksuz et al., 2307.00934,
section 5) of a class is, over 25 bins of the score, the mean distance between the mean
score and the share of hits times their mean IoU: a calibrated score is the IoU to be
expected.

As in the papers, tau is 0.5 for the optimal LRP, and 0.1 for LRP and LaECE, which are
those of the detections above one threshold per class, the LRP-optimal one. The papers'
thresholds come from a validation set; here they come from the clean pictures of the
evaluation itself, and hold for all of its passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .detections import Detections, GroundTruth, pair
from .matching import MAX_DETS, assign, overlaps, uncounted

OPTIMAL_TAU = 0.5
DEPLOYED_TAU = 0.1
BINS = 25


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The detections of one class that count, by falling score."""

    scores: np.ndarray  # (n,)
    ious: np.ndarray  # (n,) with the object that a detection hits, 0 where it hits none
    hits: np.ndarray  # (n,) bool
    num_objects: int

    def above(self, threshold: float) -> ClassMatches:
        """The detections of at least this score; hits do not depend on lower ones."""
        keep = self.scores >= threshold
        return ClassMatches(
            self.scores[keep], self.ious[keep], self.hits[keep], self.num_objects
        )


@dataclass(frozen=True)
class LRP:
    """The error of a class and its parts, each from 0 (nothing is wrong) to 1."""

    error: float
    loc: float  # mean of 1 - IoU over the hits; NaN without any
    fp: float  # share of false ones among the detections; NaN without any
    fn: float  # share of missed ones among the objects
    threshold: float  # on the score; infinite if no detection is better than any


def class_matches(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    taus: Sequence[float] = (OPTIMAL_TAU, DEPLOYED_TAU),
    iou_type: str = 'bbox',
) -> list[list[ClassMatches]]:
    """Matches detections with objects as COCO does, for each tau and class.

    Args:
        truths: all images of the dataset, also those without objects.
        detections: of the same images, in any order.
        num_classes: K, classes of the dataset.
        taus: least IoUs of a hit.
        iou_type: ``'bbox'`` for boxes, ``'segm'`` for masks in their place.

    Raises:
        ConfigError: if the images do not agree.
    """
    least = np.asarray(taus, dtype=float)
    rows: list[list[Any]] = [[] for _ in range(num_classes)]
    objects = np.zeros(num_classes, dtype=np.int64)
    for truth, found in pair(truths, detections, num_classes):
        np.add.at(objects, truth.labels[~truth.ignore], 1)
        overlap, odd = overlaps(found, truth, iou_type), uncounted(found, iou_type)
        for label in np.unique(found.labels):
            place = np.flatnonzero(found.labels == label)
            order = np.argsort(-found.scores[place], kind='stable')
            place = place[order][:MAX_DETS]
            same = truth.labels == label
            ignore = np.append(truth.ignore[same], False)
            own = overlap[place][:, same]
            partner = assign(own, truth.ignore[same], least)
            ignored = ignore[partner] | ((partner < 0) & odd[place])
            ious = np.append(own, np.zeros((len(place), 1)), axis=1)
            ious = ious[np.arange(len(place)), partner]  # -1 is the column of zeros
            rows[label].append((found.scores[place], ious, partner >= 0, ignored))
    return [
        [
            _joined(each, number, int(count))
            for each, count in zip(rows, objects, strict=True)
        ]
        for number in range(len(least))
    ]


def _joined(rows: Sequence[Any], number: int, num_objects: int) -> ClassMatches:
    """Puts the images of a class together, at one tau."""
    if not rows:
        nothing = np.zeros(0)
        return ClassMatches(nothing, nothing, nothing.astype(bool), num_objects)
    scores = np.concatenate([row[0] for row in rows]).astype(np.float64)
    ious, hits, ignored = (
        np.concatenate([row[place][number] for row in rows]) for place in (1, 2, 3)
    )
    order = np.argsort(-scores, kind='stable')
    order = order[~ignored[order]]
    return ClassMatches(scores[order], ious[order], hits[order], num_objects)


def lrp(found: ClassMatches, tau: float, threshold: float = -np.inf) -> LRP | None:
    """Returns the LRP of a class above a score; None if it has no object."""
    if not found.num_objects:
        return None
    above = found.above(threshold)
    number, hits = len(above.scores), int(above.hits.sum())
    lost = float((1 - above.ious[above.hits]).sum())
    missed = found.num_objects - hits
    return LRP(
        error=(lost / (1 - tau) + number - hits + missed) / (number + missed),
        loc=lost / hits if hits else float('nan'),
        fp=1 - hits / number if number else float('nan'),
        fn=missed / found.num_objects,
        threshold=threshold,
    )


def optimal_lrp(found: ClassMatches, tau: float) -> LRP | None:
    """Returns the smallest LRP over all thresholds; None if a class has no object."""
    if not found.num_objects:
        return None
    number = np.arange(1, len(found.scores) + 1)
    lost = np.cumsum(np.where(found.hits, 1 - found.ious, 0)) / (1 - tau)
    hits = np.cumsum(found.hits)
    missed = found.num_objects - hits
    errors = (lost + number - hits + missed) / (number + missed)
    # Detections of one score are taken together.
    last = np.append(found.scores[1:] != found.scores[:-1], True)[: len(errors)]
    errors = np.where(last, errors, np.inf)
    if not len(errors) or errors.min() >= 1:
        return lrp(found, tau, np.inf)
    return lrp(found, tau, float(found.scores[errors.argmin()]))


def laece(found: ClassMatches) -> float | None:
    """Returns LaECE of a class; None if there is no object or no detection of it."""
    if not found.num_objects or not len(found.scores):
        return None
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.searchsorted(edges, found.scores, side='right') - 1
    bins = bins.clip(0, BINS - 1)
    # Sums over a bin: its size cancels against its weight.
    ious = np.bincount(bins, np.where(found.hits, found.ious, 0), BINS)
    scores = np.bincount(bins, found.scores, BINS)
    return float(np.abs(ious - scores).sum() / len(found.scores))


def deployed_thresholds(matches: Sequence[Sequence[ClassMatches]]) -> list[float]:
    """Returns the LRP-optimal threshold of each class, at tau 0.1.

    Of the thresholds that keep the same detections it is the middle one: the least
    score that is kept would lose its detection to any change of it.

    Args:
        matches: of :func:`class_matches`, on clean pictures. A class that is not found
            at all gets an infinite one, and one without an object NaN.
    """
    found = [optimal_lrp(each, DEPLOYED_TAU) for each in matches[1]]
    least = [np.nan if each is None else each.threshold for each in found]
    pairs = zip(least, matches[1], strict=True)
    return [
        (kept + each.scores[each.scores < kept].max(initial=0)) / 2
        for kept, each in pairs
    ]


def calibration(
    matches: Sequence[Sequence[ClassMatches]], thresholds: Sequence[float]
) -> dict[str, float | None]:
    """Returns ``oLRP``, ``LRP`` and ``LaECE`` of a pass, each in [0, 1].

    They are means over the classes that have an object; LaECE over those of them with a
    detection above its threshold. The parts of both LRPs are there as well, like
    ``oLRP_loc``, ``oLRP_fp`` and ``oLRP_fn``; None where no class has one.

    Args:
        matches: of :func:`class_matches`.
        thresholds: of each class, see :func:`deployed_thresholds`. Classes without one,
            which the clean pictures do not show, are left out of LRP and LaECE.
    """
    optimal, deployed = matches
    both = zip(deployed, thresholds, strict=True)
    pairs = [(each, kept) for each, kept in both if not np.isnan(kept)]
    found: dict[str, float | None] = {}
    errors = {
        'oLRP': [optimal_lrp(each, OPTIMAL_TAU) for each in optimal],
        'LRP': [lrp(each, DEPLOYED_TAU, threshold) for each, threshold in pairs],
    }
    for name, classes in errors.items():
        known = [each for each in classes if each is not None]
        found[name] = _mean([each.error for each in known])
        for part in ('loc', 'fp', 'fn'):
            found[f'{name}_{part}'] = _mean([getattr(each, part) for each in known])
    above = [laece(each.above(threshold)) for each, threshold in pairs]
    found['LaECE'] = _mean([each for each in above if each is not None])
    return found


def _mean(values: Sequence[float]) -> float | None:
    known = [each for each in values if not np.isnan(each)]
    return float(np.mean(known)) if known else None
