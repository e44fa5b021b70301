"""Bootstrap intervals, exact where they can be."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrobust.analysis import (
    FastAP,
    bootstrap_difference,
    bootstrap_map,
    match_detections,
    mean_ap,
)
from mmrobust.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from made_up import dataset, one

BOX = [10, 10, 60, 60]


def table_of(hits):
    """One object per image, hit or missed at all thresholds."""
    truths = [one([BOX], [0], img_id=index) for index in range(len(hits))]
    found = [
        one([BOX] * hit, [0] * hit, [0.9] * hit, img_id=index)
        for index, hit in enumerate(map(int, hits))
    ]
    return match_detections(truths, found, 1)


def test_where_all_images_are_alike_there_is_no_spread():
    for hit, value in ((True, 1.0), (False, 0.0)):
        interval = bootstrap_map(table_of([hit] * 5), resamples=50)
        assert (interval.estimate, interval.low, interval.high) == (value,) * 3
    # The same twice: no difference in any resample, though each one moves.
    mixed = table_of([True, False] * 5)
    interval = bootstrap_map(mixed, resamples=50)
    assert interval.low < interval.estimate < interval.high
    same = bootstrap_difference(mixed, mixed, resamples=50)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    lost = bootstrap_difference(table_of([True] * 5), table_of([False] * 5), 50)
    assert (lost.estimate, lost.low, lost.high) == (1.0, 1.0, 1.0)


def test_approaches_the_exact_distribution():
    # Four images: all 256 equally likely resamples can be written down.
    truths, (found,) = dataset(3, 4, 2)
    table = match_detections(truths, found, 2)
    fast = FastAP(table)
    values = [
        fast.mean(np.bincount(drawn, minlength=4))
        for drawn in itertools.product(range(4), repeat=4)
    ]
    values = np.array([value for value in values if not math.isnan(value)])
    interval = bootstrap_map(table, resamples=4000, confidence=0.6)
    for end, share in ((interval.low, 0.2), (interval.high, 0.8)):
        assert (values < end - 1e-9).mean() < share + 0.03
        assert (values <= end + 1e-9).mean() > share - 0.03
    assert interval.low < interval.high
    assert interval.estimate == mean_ap(table)


def test_pairing_narrows_the_difference():
    rng = np.random.default_rng(0)
    hits = rng.random(60) < 0.6
    after = hits & (rng.random(60) < 0.8)
    benign, attacked = table_of(hits), table_of(after)
    first, second = (bootstrap_map(t, 300) for t in (benign, attacked))
    paired = bootstrap_difference(benign, attacked, 300)
    assert paired.estimate == pytest.approx(first.estimate - second.estimate)
    assert paired.high - paired.low < (first.high - first.low)
    assert paired.low > 0
    assert second.high > first.low  # the single intervals would not show it


def test_seeded():
    table = table_of([True, False, True, True, False, False])
    first, second = (bootstrap_map(table, 100, seed=4) for _ in range(2))
    assert first == second
    assert first.resamples == 100
    narrow = bootstrap_map(table, 400, confidence=0.5)
    wide = bootstrap_map(table, 400, confidence=0.99)
    assert wide.high - wide.low > narrow.high - narrow.low


def test_without_objects_and_bad_settings():
    table = match_detections([one([], [])], [one([], [], [])], 1)
    interval = bootstrap_map(table, 10)
    assert math.isnan(interval.estimate)
    assert math.isnan(interval.low)
    with pytest.raises(ConfigError, match='resample'):
        bootstrap_map(table, 0)
    with pytest.raises(ConfigError, match='confidence'):
        bootstrap_map(table, 10, confidence=95)
    with pytest.raises(ConfigError, match='different images'):
        bootstrap_difference(table_of([True]), table_of([True, False]))
