"""The worst case over several attacks: which attack to use on which image.

mAP does not split into images, so the attack that hurts an image most by itself need
not be the one that lowers mAP most. As for mIoU in segmentation (SEA: Croce, Singh
and Hein, arXiv 2306.12941), a greedy search over images and attacks finds a
combination that is at least as bad as every single attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .average_precision import area, area_slope, mean_ap, recall_gains, split_events
from .image_score import worst_per_image
from .matching import MatchTable, check_same_images, combine


@dataclass(frozen=True, eq=False)
class WorstCase:
    """The found combination of attacks."""

    assignment: np.ndarray  # (I,) index of the attack on each image
    mean_ap: float  # mAP of the combination, in [0, 1]
    single: np.ndarray  # (A,) mAP of each attack on all images
    per_image: float  # mAP of the choice by image scores
    start: str  # what the search began from: 'per_image' or an attack's index as text
    rounds: int  # passes over the images
    switches: int  # how many times an image changed its attack
    converged: bool  # whether it ended by tolerance, not by the limit on the rounds


def worst_case_map(
    tables: Sequence[MatchTable],
    seed: int = 0,
    tolerance: float = 1e-6,
    max_rounds: int = 100,
) -> WorstCase:
    """Searches the combination of attacks with the lowest mAP of the dataset.

    The start is the lowest of all single attacks and of the choice by image scores.
    Images are then visited in random order, a new one each round; an image changes to
    the attack with the lowest resulting mAP if that is lower than now. It ends after a
    round that lowered mAP by no more than the tolerance (SEA's value, too). The result
    is a local optimum: at or above the true worst case, and never above any single
    attack or the choice by image scores.

    A round over 5,000 images, 100 detections each, and 10 attacks takes about two
    minutes on one core; the first two or three rounds do most of the work.

    The more attacks take part the lower it gets, even if they differ by chance only:
    compare detectors under the same members.

    Args:
        tables: one per attack, of the same images. Give the benign pass as a member
            too, if an attack may not make things better.
        seed: of the order of the images.
        tolerance: fall of mAP in a round at which it ends; 0 goes on until no switch
            helps.
        max_rounds: limit on the rounds; 0 returns the start.

    Raises:
        ConfigError: if the tables are not of the same images and objects, or the
            numbers are out of range.
    """
    check_same_images(tables)
    if tolerance < 0 or max_rounds < 0:
        raise ConfigError('tolerance and max_rounds must not be negative.')
    chosen, _ = worst_per_image(tables)
    single = np.array([mean_ap(table) for table in tables])
    per_image = mean_ap(combine(tables, chosen))
    lowest = int(single.argmin())
    start, begin = 'per_image', per_image
    if not per_image <= single[lowest]:
        start, begin = str(lowest), float(single[lowest])
        chosen = np.full(tables[0].num_images, lowest)
    search = GreedySearch(tables, chosen)
    rng = np.random.default_rng(seed)
    rounds = switches = 0
    converged = False
    while rounds < max_rounds and not converged:
        before = search.mean_ap
        switches += search.sweep(rng.permutation(tables[0].num_images))
        rounds += 1
        converged = not before - search.mean_ap > tolerance
    # Computed anew, so that no rounding of the steps is in the figure.
    found = mean_ap(combine(tables, search.assignment))
    if found > begin:  # by rounding at most
        search, found = GreedySearch(tables, chosen), begin
    return WorstCase(
        search.assignment, found, single, per_image, start, rounds, switches, converged
    )


class GreedySearch:
    """mAP under changes of single images.

    Args:
        tables: one per attack, of the same images.
        assignment: (I,) the attack on each image to begin with.

    Attributes:
        assignment: the current one.
    """

    # Less is rounding, and could go round in circles.
    least_gain = 1e-12

    def __init__(self, tables: Sequence[MatchTable], assignment: np.ndarray) -> None:
        self.assignment = np.array(assignment, dtype=np.int64)
        self._attacks = len(tables)
        ranked = rank_detections(tables)
        first = tables[0]
        objects = np.bincount(first.gt_label, minlength=first.num_classes)
        # Other classes are no part of mAP, whatever is detected of them.
        self._pools = {
            int(label): ClassPool(ranked, int(label), int(objects[label]), assignment)
            for label in np.flatnonzero(objects)
        }
        # Which classes an attack detects in an image.
        self._detects = np.zeros(
            (len(tables), first.num_images, first.num_classes), bool
        )
        for number, table in enumerate(tables):
            self._detects[number, table.image, table.label] = True
        self._detects[:, :, objects == 0] = False

    @property
    def mean_ap(self) -> float:
        """The mAP of the current assignment."""
        if not self._pools:
            return float('nan')
        return sum(pool.ap for pool in self._pools.values()) / len(self._pools)

    def change(self, image: int, attack: int) -> float:
        """Returns how much mAP rises when the image changes to the attack."""
        now = int(self.assignment[image])
        pools = self._concerned(image, attack)
        rise = sum(pool.after(image, now, attack) - pool.ap for pool in pools)
        return rise / max(len(self._pools), 1)

    def least_change(self, image: int, attack: int) -> float:
        """Returns a number that ``change`` is not below, quickly."""
        now = int(self.assignment[image])
        pools = self._concerned(image, attack)
        least = sum(pool.least_change(image, now, attack) for pool in pools)
        return least / max(len(self._pools), 1)

    def switch(self, image: int, attack: int) -> None:
        """Changes the attack on an image."""
        for pool in self._concerned(image, attack):
            pool.switch(image, int(self.assignment[image]), attack)
        self.assignment[image] = attack

    def sweep(self, order: np.ndarray) -> int:
        """Changes images to their worst attacks in turn; returns how many changed."""
        return sum(self.improve(int(image)) for image in order)

    def improve(self, image: int) -> bool:
        """Changes an image to its worst attack, if that lowers mAP."""
        now = int(self.assignment[image])
        best, lowest = now, -self.least_gain
        for attack in range(self._attacks):
            # The quick bound settles most of them.
            if attack == now or self.least_change(image, attack) >= lowest:
                continue
            change = self.change(image, attack)
            if change < lowest:
                best, lowest = attack, change
        if best == now:
            return False
        self.switch(image, best)
        return True

    def _concerned(self, image: int, attack: int) -> list[ClassPool]:
        """Returns the classes of which either attack detects something."""
        detects = self._detects[[self.assignment[image], attack], image].any(axis=0)
        return [self._pools[int(label)] for label in np.flatnonzero(detects)]


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """The detections of all attacks, in one ranking.

    Whatever attack an image gets, its detections keep their place among those of the
    other images, so places are given once. They fall with the score; equal scores
    stand in the order of the images, as in pycocotools.
    """

    key: np.ndarray  # (D,) attack * I + image, rising
    label: np.ndarray  # (D,) class
    rank: np.ndarray  # (D,) place in the ranking, each once
    hit: np.ndarray  # (T, D) bool
    ignored: np.ndarray  # (T, D) bool
    num_keys: int  # A * I
    num_images: int  # I
    points: int  # see MatchTable


def rank_detections(tables: Sequence[MatchTable]) -> RankedDetections:
    """Ranks the detections of all attacks together."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in tables], axis=-1)

    num_images, image = tables[0].num_images, joined('image')
    attack = np.repeat(np.arange(len(tables)), [len(table.image) for table in tables])
    rank = np.empty(len(image), dtype=np.int64)
    # lexsort is stable: within an image the table's order decides between equals.
    rank[np.lexsort((image, -joined('score')))] = np.arange(len(image))
    return RankedDetections(
        key=attack * num_images + image,
        label=joined('label'),
        rank=rank,
        hit=joined('hit'),
        ignored=joined('ignored'),
        num_keys=len(tables) * num_images,
        num_images=num_images,
        points=tables[0].points,
    )


class ClassPool:
    """One class under the current assignment.

    Args:
        ranked: the detections of all attacks.
        label: the class.
        num_objects: its objects in the dataset, at least 1.
        assignment: (I,) the attack on each image.

    Attributes:
        ap: average precision of the class, mean over the IoU thresholds.

    A trial costs time in proportion to the class's events (see
    ``average_precision``), about its number of objects, whatever the number of
    detections. Most images change only everywhere-errors of a class: then a bound is
    had for next to nothing.
    """

    def __init__(
        self,
        ranked: RankedDetections,
        label: int,
        num_objects: int,
        assignment: np.ndarray,
    ) -> None:
        self._objects = num_objects
        self._images, self._points = ranked.num_images, ranked.points
        place = np.flatnonzero(ranked.label == label)
        key, rank = ranked.key[place], ranked.rank[place]
        hit, ignored = ranked.hit[:, place], ranked.ignored[:, place]
        event, error = split_events(hit, ignored)
        bounds = np.arange(ranked.num_keys + 1)
        # In the order of the keys, and in each of the ranks, so that an image under
        # an attack is a slice.
        order = np.lexsort((rank[event], key[event]))
        self._rank = rank[event][order]
        self._hit = hit[:, event][:, order]
        self._error = ~(hit | ignored)[:, event][:, order]
        self._start = np.searchsorted(key[event][order], bounds)
        order = np.lexsort((rank[error], key[error]))
        self._error_rank = rank[error][order]
        self._error_start = np.searchsorted(key[error][order], bounds)
        # The current state: events and everywhere-errors of the assigned attacks.
        keys = assignment * ranked.num_images + np.arange(ranked.num_images)
        self._now = self._gather(self._start, keys)
        self._now = self._now[np.argsort(self._rank[self._now])]
        errors = self._gather(self._error_start, keys)
        self._now_errors = np.sort(self._error_rank[errors])
        self._refresh()

    def after(self, image: int, now: int, attack: int) -> float:
        """Returns the average precision with the image under another attack."""
        out, into = self._slices(self._start, image, now, attack)
        errors_out, errors_in = self._errors(image, now, attack)
        if out.start == out.stop and into.start == into.stop:
            more = errors_in.searchsorted(self._ranks)
            more -= errors_out.searchsorted(self._ranks)
            if not more.any():
                return self.ap
            return area(self._hits, self._misses + more, self._gains)
        events = self._replaced(out, into)
        ranks = self._rank[events]
        errors = self._now_errors.searchsorted(ranks)
        errors += errors_in.searchsorted(ranks) - errors_out.searchsorted(ranks)
        hits = np.cumsum(self._hit[:, events], axis=1)
        misses = np.cumsum(self._error[:, events], axis=1) + errors
        return area(hits, misses, recall_gains(hits, self._objects, self._points))

    def least_change(self, image: int, now: int, attack: int) -> float:
        """Returns a number that the change of the average precision is not below.

        It is the change itself where the image's events of the class change.
        """
        out, into = self._slices(self._start, image, now, attack)
        if out.start != out.stop or into.start != into.stop:
            return self.after(image, now, attack) - self.ap
        lost, gained = (
            float(self._slope[self._ranks.searchsorted(errors)].sum())
            for errors in self._errors(image, now, attack)
        )
        return gained - lost

    def switch(self, image: int, now: int, attack: int) -> None:
        """Changes the image from one attack to another."""
        out, into = self._slices(self._start, image, now, attack)
        self._now = self._replaced(out, into)
        errors_out, errors_in = self._errors(image, now, attack)
        now_errors = self._now_errors
        errors = np.delete(now_errors, now_errors.searchsorted(errors_out))
        self._now_errors = np.insert(errors, errors.searchsorted(errors_in), errors_in)
        self._refresh()

    def _refresh(self) -> None:
        events = self._now
        self._ranks = self._rank[events]
        self._hits = np.cumsum(self._hit[:, events], axis=1)
        self._misses = np.cumsum(self._error[:, events], axis=1)
        self._misses += self._now_errors.searchsorted(self._ranks)
        self._gains = recall_gains(self._hits, self._objects, self._points)
        self.ap = area(self._hits, self._misses, self._gains)
        self._slope = area_slope(self._hits, self._misses, self._gains)

    def _replaced(self, out: slice, into: slice) -> np.ndarray:
        """Returns the current events without some and with others, in the ranking."""
        stay = np.delete(self._now, self._ranks.searchsorted(self._rank[out]))
        events = np.append(stay, np.arange(into.start, into.stop))
        return events[np.argsort(self._rank[events])]

    def _errors(self, image: int, now: int, attack: int) -> list[np.ndarray]:
        slices = self._slices(self._error_start, image, now, attack)
        return [self._error_rank[each] for each in slices]

    def _slices(self, start: np.ndarray, image: int, *attacks: int) -> list[slice]:
        keys = [attack * self._images + image for attack in attacks]
        return [slice(int(start[key]), int(start[key + 1])) for key in keys]

    @staticmethod
    def _gather(start: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return np.concatenate([np.arange(start[k], start[k + 1]) for k in keys])
