"""How far mAP would move with other images of the same kind.

mAP of few images is no mean over images. Its running maximum over precisions makes it
too high on average, and its spread depends on where between 0 and 1 it lies, so that
the percentiles of a bootstrap lie too high and too near to each other; resamples, in
which images are repeated, are too high once more. On simulated data sets of 20 images
95 % intervals of percentiles hold the true mAP in 79 to 90 %, and BCa's (Efron 1987) in
78 to 89 %; those of this module in 90 to 96 % (experiments/intervals).

The jackknife leaves out one group of images after the other. How the value changes
gives its bias (Quenouille 1956) and variance (Efron and Stein 1981), here for groups
that may differ in size (Busing, Meijer and van der Leeden 1999). The interval is that
of Student's t around the corrected value, on the logit scale, which knows the ends 0
and 1, or on that of angles where logits know no end; its degrees of freedom are
Satterthwaite's (1946), since a variance that hangs on few images is itself not well
known. What is compared is mAP over all of recall: COCO's has steps of a hundredth,
which many groups, each of little weight, would magnify.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, stdtrit

from ..errors import ConfigError
from .average_precision import FastAP, mean_ap
from .matching import MatchTable, check_same_images, combine, restrict
from .worst_case import GreedySearch

METHOD = "jackknife over images, Student's t on the logit scale"

# Most groups of images that are left out one after the other. The search for a worst
# case takes a round over the images for each.
GROUPS, SEARCH_GROUPS = 200, 20

# From so many logits on the nearer of two ends counts. Next to 0 or 1, where a share is
# not known to its own size, logits know no end; angles (the variance-stabilising
# arcsine) do.
_FAR = 2.0

# The correction takes at most three quarters of the way to the end of the range.
_LEAST_LEFT = 0.25


@dataclass(frozen=True)
class Interval:
    """An interval for the mAP of all images of the kind, by the jackknife."""

    estimate: float  # the value on all images
    low: float  # lower end; NaN, as the upper one, where nothing can be left out
    high: float  # upper end
    confidence: float  # share of such intervals that hold the value looked for
    resamples: int  # groups of images that were left out, one after the other
    bias: float = 0.0  # by how much the estimate is too high on average, for its images
    method: str = METHOD


def map_interval(
    table: MatchTable, confidence: float = 0.95, seed: int = 0, groups: int = GROUPS
) -> Interval:
    """Returns an interval of mAP over the choice of images.

    It says nothing of other attack seeds or training runs, nor of classes that none of
    the images shows. Where all images are alike it has no width: of an mAP of exactly 0
    or 1 it does not tell how far that is by chance.

    Args:
        table: the matches of the dataset, or of a combination of attacks.
        confidence: in (0, 1).
        seed: of the division of the images into groups.
        groups: most groups that are left out, at least 2. Up to that many images are
            left out one by one.

    Raises:
        ConfigError: if a number is out of range.
    """
    jackknife = Jackknife(table.num_images, groups, seed)
    fast = FastAP(table)
    values = jackknife.values(lambda counts: fast.mean(counts, levels=False))
    return jackknife.around(fast.mean(), values, confidence)


def map_values(table: MatchTable, seed: int = 0, groups: int = GROUPS) -> np.ndarray:
    """Returns mAP over all of recall, on all images and without each group, (1 + G,).

    For :func:`mean_intervals`, so that no table has to be kept.

    Args:
        table: the matches of the dataset.
        seed: see :func:`map_interval`.
        groups: the same.
    """
    fast = FastAP(table)
    jackknife = Jackknife(table.num_images, groups, seed)
    return jackknife.values(lambda counts: fast.mean(counts, levels=False))


def mean_intervals(
    benign: MatchTable,
    groups_of_passes: Sequence[Sequence[tuple[float, np.ndarray]]],
    confidence: float = 0.95,
    seed: int = 0,
    groups: int = GROUPS,
) -> tuple[Interval, Interval]:
    """Returns intervals of a mean of passes, and of its share of the benign mAP.

    The passes have the same images, so that the hard images of one are those of the
    others, and the interval of their mean is hardly narrower than that of one.

    Args:
        benign: matches without attack.
        groups_of_passes: mAP of each pass and its :func:`map_values`, of the images of
            ``benign``; the mean is that of the means of the groups.
        confidence: see :func:`map_interval`.
        seed: the same, as for the values.
        groups: the same.

    Raises:
        ConfigError: if a number is out of range.
    """
    jackknife = Jackknife(benign.num_images, groups, seed)
    means = [
        (
            float(np.mean([estimate for estimate, _ in passes])),
            np.mean([values for _, values in passes], axis=0),
        )
        for passes in groups_of_passes
    ]
    mean = float(np.mean([estimate for estimate, _ in means]))
    values = np.mean([each for _, each in means], axis=0)
    with np.errstate(divide='ignore', invalid='ignore'):
        share = np.float64(mean) / mean_ap(benign)
        shares = values / map_values(benign, seed, groups)
    return (
        jackknife.around(mean, values, confidence),
        jackknife.around(float(share), shares, confidence),
    )


def difference_interval(
    benign: MatchTable,
    attacked: MatchTable,
    confidence: float = 0.95,
    seed: int = 0,
    groups: int = GROUPS,
) -> Interval:
    """Returns an interval of benign minus attacked mAP over the choice of images.

    Both lose the same images: whether an image is a hard one then cancels, and the
    interval is narrower than the two intervals suggest.

    Args:
        benign: matches without attack.
        attacked: matches under attack, of the same images.
        confidence: see :func:`map_interval`.
        seed: the same.
        groups: the same.

    Raises:
        ConfigError: if a number is out of range or the images differ.
    """
    check_same_images([benign, attacked])
    first, second = FastAP(benign), FastAP(attacked)

    def fall(counts: np.ndarray) -> float:
        return first.mean(counts, levels=False) - second.mean(counts, levels=False)

    jackknife = Jackknife(benign.num_images, groups, seed)
    estimate = first.mean() - second.mean()
    return jackknife.around(estimate, jackknife.values(fall), confidence, lowest=-1.0)


def worst_case_intervals(
    tables: Sequence[MatchTable],
    assignment: np.ndarray,
    confidence: float = 0.95,
    seed: int = 0,
    groups: int = SEARCH_GROUPS,
) -> tuple[Interval, Interval]:
    """Returns intervals of a worst case, and of what it takes from the first table.

    An adversary that sees other images chooses anew: whenever a group is left out, the
    attack on each of the others is searched once more, in one round over them that
    begins with the combination found. So it is on all images, for the comparison. Cost:
    ``groups + 1`` rounds of :func:`mmrobust.analysis.worst_case_map`.

    Args:
        tables: one per attack, of the same images, the benign one first.
        assignment: (I,) the combination found.
        confidence: see :func:`map_interval`.
        seed: the same; and of the order of the images in the search.
        groups: see :func:`map_interval`.

    Raises:
        ConfigError: if a number is out of range or the images differ.
    """
    check_same_images(tables)
    count = tables[0].num_images
    jackknife = Jackknife(count, groups, seed)
    order = np.random.default_rng(seed).permutation(count)
    benign = FastAP(tables[0])

    def searched(counts: np.ndarray) -> float:
        kept = counts > 0
        some = [restrict(table, kept) for table in tables]
        search = GreedySearch(some, assignment[kept])
        place = np.cumsum(kept) - 1
        search.sweep(place[order[kept[order]]])
        return FastAP(combine(some, search.assignment)).mean(levels=False)

    found = mean_ap(combine(tables, assignment))
    worst = jackknife.values(searched)
    falls = jackknife.values(lambda counts: benign.mean(counts, levels=False)) - worst
    return (
        jackknife.around(found, worst, confidence),
        jackknife.around(benign.mean() - found, falls, confidence, lowest=-1.0),
    )


class Jackknife:
    """Leaves out one group of images after the other.

    Args:
        num_images: I, in the dataset.
        groups: see :func:`map_interval`.
        seed: the same.
    """

    def __init__(self, num_images: int, groups: int, seed: int) -> None:
        if groups < 2:
            raise ConfigError(
                f'groups={groups}: an interval needs at least two groups.'
            )
        self.count = min(groups, num_images)
        # At random, since neighbours in a dataset may be alike.
        order = np.random.default_rng(seed).permutation(num_images)
        self._group = np.empty(num_images, dtype=np.int64)
        self._group[order] = np.arange(num_images) % self.count
        # How often each group fits into the images.
        self._times = num_images / np.bincount(self._group, minlength=self.count)

    def values(self, statistic: Callable[[np.ndarray], float]) -> np.ndarray:
        """Returns a statistic on all images, and without each group, (1 + G,).

        Args:
            statistic: of counts (I,), how often each image is there.
        """
        all_images = np.ones(len(self._group), dtype=np.int64)
        without = [self._group != group for group in range(self.count)]
        counts = [all_images, *(each.astype(np.int64) for each in without)]
        return np.array([statistic(each) for each in counts])

    def around(
        self,
        estimate: float,
        values: np.ndarray,
        confidence: float,
        lowest: float = 0.0,
    ) -> Interval:
        """Returns the interval of an estimate, by :meth:`values`.

        Args:
            estimate: on all images.
            values: of the statistic that tells how the estimate moves.
            confidence: in (0, 1).
            lowest: end of the range of the values, the other one is 1.
        """
        if not 0 < confidence < 1:
            raise ConfigError(f'confidence={confidence} must be between 0 and 1.')
        whole, without = values[0], values[1:]
        if self.count < 2 or np.isnan(values).any():
            nothing = float('nan')
            return Interval(estimate, nothing, nothing, confidence, self.count)
        corrected = self.count * whole - ((1 - 1 / self._times) * without).sum()
        bias = float(whole - corrected)
        ends = self._ends(estimate, bias, values, confidence, lowest)
        # The correction may be larger than the interval is wide.
        low, high = min(estimate, *ends), max(estimate, *ends)
        return Interval(estimate, low, high, confidence, self.count, bias)

    def _ends(
        self,
        estimate: float,
        bias: float,
        values: np.ndarray,
        confidence: float,
        lowest: float,
    ) -> tuple[float, float]:
        times, (whole, *_), span = self._times, values, 1 - lowest
        # Of each group, what is known of the value from it alone, in the common unit.
        apart = times * whole - (times - 1) * values[1:] - (whole - bias)
        apart /= np.sqrt(times - 1)
        variance = float((apart**2).mean())
        share = (estimate - lowest) / span
        if variance <= 0 or not 0 < share < 1:
            return estimate, estimate
        kurtosis = float((apart**4).mean()) / variance**2
        freedom = self.count - 1.0
        if kurtosis > 1:
            freedom = min(max(2 * self.count / (kurtosis - 1), 2.0), freedom)
        nearest = _LEAST_LEFT * share, 1 - _LEAST_LEFT * (1 - share)
        centre = min(max(share - bias / span, nearest[0]), nearest[1])
        reach = float(stdtrit(freedom, (1 + confidence) / 2))
        reach *= np.sqrt(variance) / span
        low, high = lowest + span * _around(centre, reach)
        return float(low), float(high)


def _around(centre: float, reach: float) -> np.ndarray:
    """Returns the ends of an interval of shares, by how far they are in their unit."""
    odds = reach / (centre * (1 - centre))
    low, high = expit(logit(centre) + np.array([-odds, odds]))
    if odds > _FAR:
        step = reach / (2 * np.sqrt(centre * (1 - centre)))
        angles = np.arcsin(np.sqrt(centre)) + np.array([-step, step])
        least, most = np.sin(angles.clip(0, np.pi / 2)) ** 2
        low, high = max(low, least), min(high, most)
    return np.array([low, high])
