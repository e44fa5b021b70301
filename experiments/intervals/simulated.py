"""Simulated data sets whose true mAP is known, as tables of matches.

Images differ in how crowded and how difficult they are, so that what is in an image
goes together; classes differ in difficulty, detections in overlap and score.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from mmrobust.analysis import FastAP, MatchTable
from mmrobust.analysis.average_precision import recall_levels
from scipy.special import expit

THRESHOLDS = 10

# Objects per image, by class.
SPREADS = {
    'even': np.full(6, 0.5),
    'uneven': np.array([1.2, 0.7, 0.4, 0.25, 0.15, 0.1]),
}


@dataclass(frozen=True)
class Detector:
    """How well a detector does, before images and classes make it easier or harder.

    Attributes:
        found: log-odds that an object is detected at all.
        overlap: log-odds of the share of thresholds that a detection reaches.
        certainty: how much the score rises with the overlap.
        false: false detections per image and class.
    """

    found: float
    overlap: float
    certainty: float
    false: float


# By about their true mAP.
DETECTORS = {
    '0.05': Detector(-1.2, -0.5, 1.2, 2.0),
    '0.2': Detector(0.1, 0.2, 1.4, 1.3),
    '0.5': Detector(1.7, 0.95, 2.1, 1.0),
    '0.75': Detector(3.1, 1.8, 3.1, 0.7),
}


def draw(
    rng: np.random.Generator,
    num_images: int,
    frequencies: np.ndarray,
    detector: Detector,
    attacks: int = 0,
) -> list[MatchTable]:
    """Draws a data set, and what is detected in it.

    Args:
        rng: the draws.
        num_images: I, of the data set; some have no object.
        frequencies: (K,) objects per image, by class.
        detector: what detects.
        attacks: under which each image is more or less difficult, at random; with 0
            there is one table, without attack.
    """
    classes = len(frequencies)
    difficulty = rng.normal(0, 0.7, num_images)
    crowded = rng.gamma(2, 0.5, (num_images, 1))
    gt_image, gt_label = _places(rng.poisson(crowded * frequencies))
    easier = np.linspace(0.6, -0.6, classes)
    tables = []
    for _ in range(max(attacks, 1)):
        ease = difficulty + (rng.normal(0, 0.7, num_images) if attacks else 0)
        false = np.full(num_images, detector.false)
        if attacks:
            false = false * np.exp(rng.normal(-0.25, 0.7, num_images))
        chance = expit(detector.found + ease[gt_image] + easier[gt_label])
        found = rng.random(len(gt_image)) < chance
        noise, doubt = rng.normal(0, 1, (2, len(gt_image)))
        overlap = expit(detector.overlap + 0.8 * ease[gt_image] + noise)
        reached = np.floor(overlap * (THRESHOLDS + 1)).astype(int)
        sure = -1 + detector.certainty * (0.5 + overlap) + 0.5 * ease[gt_image] + doubt
        image, label = _places(rng.poisson(np.repeat(false[:, None], classes, 1)))
        wrong = -1.5 - 0.3 * ease[image] + rng.normal(0, 1, len(image))
        columns = (
            np.concatenate([gt_image[found], image]),
            np.concatenate([gt_label[found], label]),
            expit(np.concatenate([sure[found], wrong])),
            np.concatenate([reached[found], np.zeros(len(image), int)]),
        )
        order = np.lexsort((-columns[2], columns[1], columns[0]))
        image, label, score, reached = (column[order] for column in columns)
        hit = np.arange(THRESHOLDS)[:, None] < reached
        tables.append(
            MatchTable(
                img_ids=tuple(range(num_images)),
                num_classes=classes,
                image=image,
                label=label,
                score=score,
                hit=hit,
                ignored=np.zeros_like(hit),
                gt_image=gt_image,
                gt_label=gt_label,
            )
        )
    return tables


def _places(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns image and class of so many things per image and class, (I, K)."""
    image, label = np.indices(counts.shape).reshape(2, -1)
    return np.repeat(image, counts.ravel()), np.repeat(label, counts.ravel())


class ManyWeights:
    """mAP of many weightings of one data set at once: FastAP's, and faster by far."""

    def __init__(self, table: MatchTable) -> None:
        self._table, self._fast = table, FastAP(table)

    def __call__(self, counts: np.ndarray, levels: bool = True) -> np.ndarray:
        """Returns mAP (B,) of how often each image is there (B, I)."""
        classes = range(self._table.num_classes)
        columns = [self._class(counts, label, levels) for label in classes]
        values = np.stack(columns, axis=1)
        there = ~np.isnan(values)
        with np.errstate(invalid='ignore'):
            mean: np.ndarray = np.where(there, values, 0).sum(1) / there.sum(1)
        return mean

    def _class(self, counts: np.ndarray, label: int, by_level: bool) -> np.ndarray:
        table, events = self._table, self._fast._classes[label]
        own = table.gt_image[table.gt_label == label]
        objects = counts[:, own].sum(axis=1)
        if not len(events.image):
            return np.where(objects > 0, 0.0, np.nan)
        weights = counts[:, events.image]
        errors = np.cumsum(counts[:, events.error_image], axis=1)
        errors = np.pad(errors, ((0, 0), (1, 0)))[:, events.errors_before]
        levels, rows = _levels(int(objects.max())), objects[:, None]
        total = np.zeros(len(counts))
        for hit, error in zip(events.hit, events.error, strict=True):
            hits = np.cumsum(hit * weights, axis=1)
            misses = np.cumsum(error * weights, axis=1) + errors
            precision = hits / (hits + misses + np.spacing(1))
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = levels[rows, hits] if by_level else 101 * hits / rows.clip(1)
            gains = np.diff(reached, axis=1, prepend=0)
            total += (precision * gains).sum(axis=1)
        return np.where(objects > 0, total / (101 * len(events.hit)), np.nan)


def _levels(most: int) -> np.ndarray:
    """(most + 1, most + 1) recall levels reached, by objects and hits."""
    found = np.zeros((most + 1, most + 1), dtype=np.int64)
    for objects in range(1, most + 1):
        found[objects, : objects + 1] = recall_levels(objects)
    return found


@dataclass
class Population:
    """Where the data sets come from."""

    spread: str
    strength: str

    @property
    def detector(self) -> Detector:
        """What detects."""
        return DETECTORS[self.strength]

    def draw(
        self, rng: np.random.Generator, num_images: int, attacks: int = 0
    ) -> list[MatchTable]:
        """See :func:`draw`."""
        return draw(rng, num_images, SPREADS[self.spread], self.detector, attacks)

    @cached_property
    def true_map(self) -> float:
        """The mAP of 100,000 images."""
        (table,) = self.draw(np.random.default_rng(99), 100_000)
        return FastAP(table).mean()
