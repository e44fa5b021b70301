"""Panoptic quality, image by image, with its intervals and worst case.

The panoptic quality (PQ: Kirillov et al., arXiv 1801.00868) of a class is the sum of
the IoUs of its matched segments over ``TP + FP / 2 + FN / 2``; that of a dataset is the
mean over the classes that occur. A segment matches the one of its class with which it
has an IoU above 0.5; there is at most one. Since both sums add up over images, all
figures here come from four numbers per image and class.

Qualities are in percent, as mmdet's CocoPanopticMetric gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConfigError
from .intervals import GROUPS, SEARCH_GROUPS, Interval, Jackknife


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of one image."""

    index: np.ndarray  # (H, W) which segment a pixel is of: 1 to S, 0 for void
    labels: np.ndarray  # (S,) class indices
    crowd: np.ndarray  # (S,) bool: several objects in one, which match nothing

    @classmethod
    def of(
        cls, ids: np.ndarray, known: np.ndarray, labels: np.ndarray, crowd: np.ndarray
    ) -> Segments:
        """Numbers the segments of a picture of ids; ids that are not known are void.

        Args:
            ids: (H, W) the segment of each pixel.
            known: (S,) ids of the segments.
            labels: (S,) see above.
            crowd: (S,) the same.
        """
        found, inverse = np.unique(ids, return_inverse=True)
        place = {int(each): number for number, each in enumerate(known, 1)}
        number = np.array([place.get(int(each), 0) for each in found], dtype=np.int64)
        return cls(number[inverse.reshape(ids.shape)], labels, crowd)


@dataclass(frozen=True, eq=False)
class PanopticCounts:
    """What an image adds to the panoptic quality of each of K classes."""

    img_id: Any
    counts: np.ndarray  # (K, 4) sum of IoUs, TP, FP, FN

    @classmethod
    def of(
        cls, img_id: Any, truth: Segments, found: Segments, num_classes: int
    ) -> PanopticCounts:
        """Matches the segments of an image.

        Void pixels of the ground truth are in no union. Crowds are neither matched nor
        missed, and a segment without a match is no error if more than half of it lies
        on void or on crowds of its class.

        Raises:
            ConfigError: if both are not of one size.
        """
        if truth.index.shape != found.index.shape:
            ours, theirs = (
                '{} x {}'.format(*each.index.shape) for each in (found, truth)
            )
            raise ConfigError(
                f'the predicted segmentation of image {img_id} is of {ours} pixels, '
                f'and its ground truth of {theirs} (height x width).'
            )
        size = len(truth.labels) + 1, len(found.labels) + 1
        pairs = truth.index * size[1] + found.index
        shared = np.bincount(pairs.ravel(), minlength=size[0] * size[1]).reshape(size)
        void, common = shared[0, 1:], shared[1:, 1:]
        areas, true_areas = shared.sum(axis=0)[1:], shared.sum(axis=1)[1:, None]
        same = truth.labels[:, None] == found.labels
        ious = common / np.maximum(areas + true_areas - common - void, 1)
        hits = same & ~truth.crowd[:, None] & (ious > 0.5)
        excused = void + (common * (same & truth.crowd[:, None])).sum(axis=0)
        rows, columns = np.nonzero(hits)
        wrong = ~hits.any(axis=0) & (excused <= 0.5 * areas)
        missed = ~hits.any(axis=1) & ~truth.crowd
        places = truth.labels[rows]
        counts = [
            np.bincount(places, ious[rows, columns], num_classes),
            np.bincount(places, minlength=num_classes),
            np.bincount(found.labels[wrong], minlength=num_classes),
            np.bincount(truth.labels[missed], minlength=num_classes),
        ]
        return cls(img_id, np.stack(counts, axis=1).astype(np.float64))

    @property
    def quality(self) -> float:
        """PQ of the image by itself; 100 where there is no segment to judge."""
        found = float(panoptic_quality(self.counts)[0])
        return 100.0 if np.isnan(found) else found


def panoptic_quality(counts: np.ndarray) -> np.ndarray:
    """Returns PQ, SQ and RQ (..., 3) of counts (..., K, 4); NaN if no class occurs.

    SQ is the mean IoU of matched segments (0 for a class without any), and RQ the F1
    score; the PQ of a class is their product.
    """
    ious, hits, wrong, missed = np.moveaxis(counts, -1, 0)
    total = hits + wrong / 2 + missed / 2
    occurs = total > 0
    segments, recognised = ious / np.maximum(hits, 1), hits / np.maximum(total, 0.5)
    classes = np.stack([segments * recognised, segments, recognised])
    with np.errstate(invalid='ignore'):
        means = (classes * occurs).sum(axis=-1) / occurs.sum(axis=-1)
    return 100 * np.moveaxis(means, 0, -1)


@dataclass(frozen=True, eq=False)
class PanopticTable:
    """The counts of a dataset under one attack."""

    img_ids: tuple  # of the I images
    counts: np.ndarray  # (I, K, 4) see PanopticCounts

    @classmethod
    def of(cls, found: Sequence[PanopticCounts]) -> PanopticTable:
        """Puts images in the order of their ids; one of several equal ids counts."""
        images = {each.img_id: each for each in found}
        ids = tuple(sorted(images))
        return cls(ids, np.stack([images[each].counts for each in ids]))

    @property
    def quality(self) -> float:
        """PQ of all images."""
        return float(panoptic_quality(self.counts.sum(axis=0))[0])

    def weighted(self, times: np.ndarray) -> float:
        """PQ with each image as often as (I,) numbers say."""
        return float(panoptic_quality(np.tensordot(times, self.counts, 1))[0])

    def restrict(self, images: np.ndarray) -> PanopticTable:
        """The table of some of the images, (I,) bool."""
        ids = tuple(self.img_ids[index] for index in np.flatnonzero(images))
        return replace(self, img_ids=ids, counts=self.counts[images])


def pq_interval(table: PanopticTable, seed: int = 0, groups: int = GROUPS) -> Interval:
    """Returns an interval of PQ over the choice of images.

    Args:
        table: the counts of the dataset.
        seed: as for :func:`mmrobust.analysis.map_interval`.
        groups: the same.
    """
    return _interval(table.quality, table.weighted, len(table.img_ids), seed, groups)


def pq_difference(
    benign: PanopticTable, attacked: PanopticTable, seed: int = 0, groups: int = GROUPS
) -> Interval:
    """Returns an interval of benign minus attacked PQ, both of the same images."""

    def fall(times: np.ndarray) -> float:
        return benign.weighted(times) - attacked.weighted(times)

    estimate = benign.quality - attacked.quality
    return _interval(estimate, fall, len(benign.img_ids), seed, groups, lowest=-1.0)


def worst_case_pq(
    tables: Sequence[PanopticTable], seed: int = 0, max_rounds: int = 100
) -> tuple[np.ndarray, float]:
    """Searches the combination of attacks with the lowest PQ of the dataset.

    As for mAP (:func:`mmrobust.analysis.worst_case_map`): from the lowest of all single
    attacks and of the choice by the images' own PQ, single images change their attack
    as long as that lowers PQ.

    Args:
        tables: one per attack, of the same images.
        seed: of the order of the images.
        max_rounds: limit on the rounds over the images.

    Returns:
        (I,) index of the attack on each image, and PQ, which is not above that of any
        table.
    """
    counts = np.stack([table.counts for table in tables])
    places = np.arange(counts.shape[1])
    single = panoptic_quality(counts)[..., 0]  # (A, I)
    starts = [np.nan_to_num(single, nan=100.0).argmin(axis=0)]
    starts += [np.full(len(places), attack) for attack in range(len(tables))]
    found = [panoptic_quality(counts[each, places].sum(axis=0))[0] for each in starts]
    chosen = starts[int(np.argmin(found))]
    rng = np.random.default_rng(seed)
    for _ in range(max_rounds):
        if not _sweep(counts, chosen, rng.permutation(len(places))):
            break
    return chosen, float(panoptic_quality(counts[chosen, places].sum(axis=0))[0])


def worst_case_pq_intervals(
    tables: Sequence[PanopticTable],
    assignment: np.ndarray,
    seed: int = 0,
    groups: int = SEARCH_GROUPS,
) -> tuple[Interval, Interval]:
    """Returns intervals of a worst case, and of what it takes from the first table.

    The choice is made anew, in one round, whenever a group of images is left out: see
    :func:`mmrobust.analysis.worst_case_intervals`.
    """
    counts = np.stack([table.counts for table in tables])
    number = len(assignment)
    order = np.random.default_rng(seed).permutation(number)

    def searched(times: np.ndarray) -> float:
        chosen = assignment.copy()
        _sweep(counts * (times > 0)[:, None, None], chosen, order[times[order] > 0])
        kept = counts[chosen, np.arange(number)]
        return float(panoptic_quality(np.tensordot(times > 0, kept, 1))[0])

    def fall(times: np.ndarray) -> float:
        return tables[0].weighted(times) - searched(times)

    lowest = counts[assignment, np.arange(number)].sum(axis=0)
    found = float(panoptic_quality(lowest)[0])
    return (
        _interval(found, searched, number, seed, groups),
        _interval(tables[0].quality - found, fall, number, seed, groups, lowest=-1.0),
    )


def _sweep(counts: np.ndarray, chosen: np.ndarray, order: np.ndarray) -> int:
    """Changes images to their worst attacks in turn, in place; how many changed."""
    total = counts[chosen, np.arange(len(chosen))].sum(axis=0)
    changed = 0
    for image in order:
        others = total - counts[chosen[image], image]
        found = panoptic_quality(others + counts[:, image])[..., 0]
        best = int(found.argmin())
        # Less is rounding, and could go round in circles.
        if found[best] < found[chosen[image]] - 1e-10:
            chosen[image] = best
            changed += 1
        total = others + counts[chosen[image], image]
    return changed


def _interval(
    estimate: float,
    statistic: Callable[[np.ndarray], float],
    num_images: int,
    seed: int,
    groups: int,
    lowest: float = 0.0,
) -> Interval:
    jackknife = Jackknife(num_images, groups, seed)
    values = jackknife.values(statistic) / 100
    found = jackknife.around(estimate / 100, values, 0.95, lowest)
    ends = {key: 100 * getattr(found, key) for key in ('low', 'high', 'bias')}
    return replace(found, estimate=estimate, **ends)
