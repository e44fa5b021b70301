"""Bootstrap intervals: mAP on other images of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .average_precision import FastAP
from .matching import MatchTable, check_same_images


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval."""

    estimate: float  # the value on all images
    low: float  # lower end
    high: float  # upper end
    confidence: float  # share of the resamples inside
    resamples: int  # how many were drawn


def bootstrap_map(
    table: MatchTable, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of mAP over the choice of images.

    Images are drawn with replacement, as many as there are, and mAP is computed of
    each such dataset; the interval holds the middle share of the values (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). It says nothing of
    other attack seeds or training runs. A class with objects in few images is absent
    from some resamples and then no part of their mAP.

    Args:
        table: the matches of the dataset, or of a combination of attacks.
        resamples: datasets to draw, at least 1; with 1000 the standard error of an end
            of a 95 % interval is about a fiftieth of the width.
        confidence: in (0, 1).
        seed: of the draws.

    Raises:
        ConfigError: if a number is out of range.
    """
    return _bootstrap(FastAP(table).mean, table.num_images, resamples, confidence, seed)


def bootstrap_difference(
    benign: MatchTable,
    attacked: MatchTable,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of benign minus attacked mAP over the choice of images.

    Both are computed on the same draws: whether an image is a hard one then cancels,
    and the interval is narrower than the two intervals suggest.

    Args:
        benign: matches without attack.
        attacked: matches under attack, of the same images.
        resamples: see ``bootstrap_map``.
        confidence: in (0, 1).
        seed: of the draws.

    Raises:
        ConfigError: if a number is out of range or the images differ.
    """
    check_same_images([benign, attacked])
    first, second = FastAP(benign), FastAP(attacked)

    def difference(counts: np.ndarray | None) -> float:
        return first.mean(counts) - second.mean(counts)

    return _bootstrap(difference, benign.num_images, resamples, confidence, seed)


def _bootstrap(
    statistic: Callable[[np.ndarray | None], float],
    num_images: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    if resamples < 1 or not 0 < confidence < 1:
        raise ConfigError(
            'a bootstrap needs at least one resample and a confidence between 0 and 1, '
            f'not {resamples} and {confidence}.'
        )
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for number in range(resamples):
        drawn = rng.integers(num_images, size=num_images)
        values[number] = statistic(np.bincount(drawn, minlength=num_images))
    values = values[~np.isnan(values)]  # resamples without any object
    low = high = float('nan')
    if len(values):
        ends = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        low, high = (float(end) for end in ends)
    return Interval(statistic(None), low, high, confidence, resamples)
