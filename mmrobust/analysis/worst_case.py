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
from .average_precision import mean_ap
from .class_pool import ClassPool, rank_detections
from .image_score import worst_per_image
from .matching import MatchTable, check_same_images, combine


@dataclass(frozen=True, eq=False)
class WorstCase:
    """The found combination of attacks.

    Attributes:
        assignment: (I,) index of the attack on each image.
        mean_ap: mAP of the combination, in [0, 1].
        single: (A,) mAP of each attack on all images.
        per_image: mAP of the choice by image scores.
        start: what the search began from: 'per_image' or an attack's index as text.
        rounds: passes over the images.
        switches: how many times an image changed its attack.
        converged: whether it ended by tolerance, not by the limit on the rounds.
    """

    assignment: np.ndarray
    mean_ap: float
    single: np.ndarray
    per_image: float
    start: str
    rounds: int
    switches: int
    converged: bool


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
        for image in rng.permutation(tables[0].num_images):
            switches += search.improve(int(image))
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
        """How much mAP rises when the image changes to the attack."""
        now = int(self.assignment[image])
        rise = 0.0
        for pool in self._concerned(image, now, attack):
            rise += pool.after(image, now, attack) - pool.ap
        return rise / max(len(self._pools), 1)

    def switch(self, image: int, attack: int) -> None:
        """Changes the attack on an image."""
        now = int(self.assignment[image])
        for pool in self._concerned(image, now, attack):
            pool.switch(image, now, attack)
        self.assignment[image] = attack

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

    def least_change(self, image: int, attack: int) -> float:
        """A number that ``change`` is not below, quickly."""
        now = int(self.assignment[image])
        least = 0.0
        for pool in self._concerned(image, now, attack):
            least += pool.least_change(image, now, attack)
        return least / max(len(self._pools), 1)

    def _concerned(self, image: int, now: int, attack: int) -> list[ClassPool]:
        detects = self._detects[now, image] | self._detects[attack, image]
        return [self._pools[int(label)] for label in np.flatnonzero(detects)]
