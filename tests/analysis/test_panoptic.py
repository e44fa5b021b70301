"""Panoptic quality by hand, and its searches against all choices."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from mmrobust.analysis import (
    PanopticCounts,
    PanopticTable,
    Segments,
    panoptic_quality,
    pq_difference,
    pq_interval,
    worst_case_pq,
    worst_case_pq_intervals,
)
from mmrobust.analysis.intervals import Jackknife
from mmrobust.errors import ConfigError


def segments(rows, labels, crowd=()):
    """Of rows of letters, one per pixel; those that are no key of labels are void."""
    ids = np.array([[ord(letter) for letter in row] for row in rows])
    known = np.array([ord(key) for key in labels], dtype=int)
    flags = np.array([key in crowd for key in labels], dtype=bool)
    return Segments.of(ids, known, np.array([*labels.values()], dtype=int), flags)


def counts(truth, found, num_classes=3):
    return PanopticCounts.of(7, truth, found, num_classes).counts.tolist()


def test_counts_by_hand():
    truth = segments(['aaaabb', 'ccccbb'], dict(a=0, b=0, c=2))
    found = segments(['xxxyyy', 'xzzzyz'], dict(x=0, y=0, z=2))
    # x has 3 of a and 1 of c; y has 1 of a and 3 of b; z has 3 of c and 1 of b.
    expected = [3 / 5 + 3 / 5, 2, 0, 0]
    assert counts(truth, found) == [expected, [0, 0, 0, 0], [3 / 5, 1, 0, 0]]
    # Of another class the same segments are false and missed.
    wrong = replace(found, labels=np.array([1, 0, 2]))
    assert counts(truth, wrong) == [[0.6, 1, 0, 1], [0, 0, 1, 0], [0.6, 1, 0, 0]]
    # An IoU of exactly a half is no match.
    half = segments(['aa', '  '], dict(a=0))
    assert counts(half, segments(['aa', 'aa'], dict(a=0))) == [
        *([1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0])
    ]
    full = segments(['aa', 'bb'], dict(a=0, b=1))
    assert counts(full, segments(['aa', 'aa'], dict(a=0)))[:2] == [
        *([0, 0, 1, 1], [0, 0, 0, 1])
    ]


def test_void_and_crowds_by_hand():
    truth = segments(['aabb', '  cc'], dict(a=0, b=1, c=0), crowd='c')
    # Void is in no union: 2 of 2.
    assert counts(truth, segments(['xx  ', 'xx  '], dict(x=0)))[0] == [1, 1, 0, 0]
    # More than half on void, on a crowd of its class, or on both: no error.
    for rows in (['   x', 'xx  '], ['   x', '  xx'], ['   x', ' xx ']):
        assert counts(truth, segments(rows, dict(x=0)))[0] == [0, 0, 0, 1]
    # Exactly a half, or a crowd of another class: an error.
    assert counts(truth, segments(['   x', '   x'], dict(x=0)))[0] == [0, 0, 1, 1]
    assert counts(truth, segments(['   x', '  xx'], dict(x=2)))[2] == [0, 0, 1, 0]
    # A crowd is neither matched nor missed.
    assert counts(truth, segments(['aabb', '    '], dict(a=0, b=1))) == [
        *([1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0])
    ]
    small = segments(['a'], dict(a=0))
    with pytest.raises(ConfigError, match=r'image 7 is of 1 x 1 pixels, .* 2 x 4'):
        counts(truth, small)


def test_quality_by_hand():
    found = np.array([[1.4, 2, 1, 1], [0, 0, 0, 3], [0, 0, 0, 0]])
    # Classes: 1.4 / 3, SQ 0.7 and RQ 2 / 3; all 0; and one that does not occur.
    expected = [100 * 1.4 / 3 / 2, 100 * 0.7 / 2, 100 * 2 / 3 / 2]
    assert panoptic_quality(found) == pytest.approx(expected)
    assert np.isnan(panoptic_quality(found[2:])).all()
    nothing = PanopticCounts(1, np.zeros((2, 4)))
    assert nothing.quality == 100
    assert PanopticCounts(1, found).quality == pytest.approx(expected[0])


def made_up(attacks, images=6, classes=3, seed=0):
    """Tables of random counts; all attacks have the same objects."""
    rng = np.random.default_rng(seed)
    objects = rng.integers(0, 3, (images, classes))
    tables = []
    for _ in range(attacks):
        hits = rng.binomial(objects, 0.6)
        wrong = rng.integers(0, 2, objects.shape)
        ious = hits * rng.uniform(0.5, 1, objects.shape)
        found = np.stack([ious, hits, wrong, objects - hits], axis=2)
        each = [PanopticCounts(i, found[i].astype(float)) for i in range(images)]
        tables.append(PanopticTable.of([*each[::-1], each[0]]))
    assert tables[0].img_ids == tuple(range(images))
    return tables


def combined(tables, choices):
    """PQ of choices (..., I) of a table for each image."""
    rows = np.stack([table.counts for table in tables])
    chosen = rows[choices, np.arange(rows.shape[1])]
    return panoptic_quality(chosen.sum(axis=-3))[..., 0]


def test_the_worst_case_is_between_the_optimum_and_the_best_member():
    optimal = 0
    for seed in range(10):
        tables = made_up(3, seed=seed)
        every = combined(tables, np.array([*product(range(3), repeat=6)]))
        chosen, lowest = worst_case_pq(tables, seed=seed)
        assert lowest == pytest.approx(combined(tables, chosen), abs=1e-9)
        assert every.min() - 1e-9 <= lowest <= min(each.quality for each in tables)
        # No single change helps.
        others = np.array([chosen] * 18)
        others[np.arange(18), np.arange(18) // 3] = np.arange(18) % 3
        assert (combined(tables, others) >= lowest - 1e-9).all()
        optimal += lowest <= every.min() + 1e-9
        start = worst_case_pq(tables, seed=seed, max_rounds=0)[1]
        assert lowest <= start <= min(each.quality for each in tables)
    assert optimal >= 7


def test_intervals_are_those_of_the_jackknife():
    tables = made_up(2, images=12)
    first, second = tables
    without = [np.arange(12) != image for image in _order(12)]
    values = [first.quality, *(first.restrict(kept).quality for kept in without)]
    expected = Jackknife(12, 200, 0).around(
        first.quality / 100, np.array(values) / 100, 0.95
    )
    found = pq_interval(first)
    assert (found.estimate, found.resamples) == (pytest.approx(first.quality), 12)
    for key in ('low', 'high', 'bias'):
        assert getattr(found, key) == pytest.approx(100 * getattr(expected, key))
    fall = pq_difference(first, second)
    assert fall.estimate == pytest.approx(first.quality - second.quality)
    assert fall.low < fall.estimate < fall.high
    same = pq_difference(first, first)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_intervals_of_the_worst_case_are_of_a_new_search():
    tables = made_up(3, images=10)
    chosen, lowest = worst_case_pq(tables)
    worst, fall = worst_case_pq_intervals(tables, chosen)
    assert worst.estimate == pytest.approx(lowest)
    assert fall.estimate == pytest.approx(tables[0].quality - lowest)
    assert worst.low < lowest < worst.high
    assert fall.low < fall.estimate < fall.high
    # Without a choice it is the interval of the one table.
    alone, nothing = worst_case_pq_intervals(tables[:1], np.zeros(10, dtype=int))
    expected = pq_interval(tables[0], groups=20)
    assert (alone.low, alone.high) == pytest.approx((expected.low, expected.high))
    assert (nothing.low, nothing.high) == (0, 0)


def _order(count):
    """Images by the group in which a jackknife of one image each leaves them out."""
    return np.argsort(Jackknife(count, 200, 0)._group)
