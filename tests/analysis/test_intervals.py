"""Intervals over images: closed forms, and how often they hold the true value."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import kurtosis
from scipy.stats import t as student

from mmrobust.analysis import (
    FastAP,
    MatchTable,
    combine,
    difference_interval,
    map_interval,
    map_values,
    match_detections,
    mean_ap,
    mean_intervals,
    restrict,
    worst_case_intervals,
    worst_case_map,
)
from mmrobust.analysis.intervals import Jackknife
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


def mean_of(values):
    return lambda counts: float((counts * values).sum() / counts.sum())


def interval_of(jackknife, statistic, lowest=0.0):
    values = jackknife.values(statistic)
    return jackknife.around(values[0], values, 0.95, lowest)


def on_logit_scale(centre, error, freedom):
    reach = student.ppf(0.975, freedom) * error / (centre * (1 - centre))
    return expit(logit(centre) - reach), expit(logit(centre) + reach)


def test_where_all_images_are_alike_there_is_no_spread():
    for hit, value in ((True, 1.0), (False, 0.0)):
        interval = map_interval(table_of([hit] * 5))
        assert (interval.estimate, interval.low, interval.high) == (value,) * 3
    # The same twice: no difference whatever is left out, though each one moves.
    mixed = table_of([True, False] * 5)
    interval = map_interval(mixed)
    assert interval.low < interval.estimate < interval.high
    same = difference_interval(mixed, mixed)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    lost = difference_interval(table_of([True] * 5), table_of([False] * 5))
    assert (lost.estimate, lost.low, lost.high) == (1.0, 1.0, 1.0)


def test_of_a_mean_of_passes():
    """Of one pass twice it is that pass's own, and of the benign one all of it."""
    truths, (first, second) = dataset(2, 12, 2, num_attacks=2)
    benign, attacked = (match_detections(truths, each, 2) for each in (first, second))
    moves = [(mean_ap(each), map_values(each)) for each in (benign, attacked)]
    mean, share = mean_intervals(benign, [[moves[1]] * 2, [moves[1]]])
    assert mean == map_interval(attacked)
    assert share.estimate == pytest.approx(moves[1][0] / moves[0][0])
    # The mean of the means of groups, not of all passes.
    mean, _ = mean_intervals(benign, [[moves[1]] * 2, [moves[0]]])
    assert mean.estimate == pytest.approx((moves[0][0] + moves[1][0]) / 2)
    _, whole = mean_intervals(benign, [[moves[0]]])
    assert (whole.estimate, whole.low, whole.high) == (1.0, 1.0, 1.0)


def test_of_hits_it_is_students_interval_of_their_share():
    """mAP of one class is the share of hits, where nothing else is detected."""
    hits = np.arange(40) % 4 > 0
    interval = map_interval(table_of(hits))
    assert interval.estimate == pytest.approx(76 / 101)  # levels of recall up to 0.75
    error, freedom = hits.std(ddof=1) / math.sqrt(40), 39
    assert (interval.low, interval.high) == pytest.approx(
        on_logit_scale(76 / 101, error, freedom), rel=5e-3
    )
    assert interval.bias == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('shape', [0.5, 5])
def test_of_a_mean_it_is_students_interval_of_the_mean(shape):
    values = np.random.default_rng(0).beta(shape, 2 * shape, 30)
    interval = interval_of(Jackknife(30, 200, seed=3), mean_of(values))
    error = values.std(ddof=1) / math.sqrt(30)
    # Without excess there are as many degrees of freedom as images, less one.
    freedom = min(2 * 30 / (kurtosis(values, fisher=False) - 1), 29)
    ends = on_logit_scale(values.mean(), error, freedom)
    assert (interval.low, interval.high) == pytest.approx(ends, rel=1e-9)
    assert interval.bias == pytest.approx(0, abs=1e-12)
    assert interval.resamples == 30
    # Of a difference it is the same interval, in units of -1 to 1.
    rescaled = interval_of(
        Jackknife(30, 200, seed=3), mean_of(2 * values - 1), lowest=-1
    )
    assert (rescaled.low, rescaled.high) == pytest.approx(2 * np.array(ends) - 1)


def test_groups_that_differ_in_size():
    values = np.random.default_rng(0).random(23)
    interval = interval_of(Jackknife(23, 5, seed=3), mean_of(values))
    group = np.empty(23, dtype=int)
    group[np.random.default_rng(3).permutation(23)] = np.arange(23) % 5
    means = np.array([values[group == each].mean() for each in range(5)])
    sizes = np.bincount(group)
    assert set(sizes) == {4, 5}
    apart = (means - values.mean()) / np.sqrt(23 / sizes - 1)
    square = (apart**2).mean()
    freedom = min(2 * 5 / ((apart**4).mean() / square**2 - 1), 4)
    ends = on_logit_scale(values.mean(), math.sqrt(square), freedom)
    assert (interval.low, interval.high) == pytest.approx(ends, rel=1e-9)
    assert interval.bias == pytest.approx(0, abs=1e-12)


def test_a_bias_is_taken_away():
    """The variance of n values is too small by one n-th of itself."""
    values = np.random.default_rng(0).random(12)

    def variance(counts):
        return mean_of(values**2)(counts) - mean_of(values)(counts) ** 2

    interval = interval_of(Jackknife(12, 12, seed=0), variance)
    assert interval.estimate == pytest.approx(values.var())
    assert interval.bias == pytest.approx(values.var() - values.var(ddof=1))
    assert logit([interval.low, interval.high]).mean() == pytest.approx(
        logit(values.var(ddof=1))
    )


def test_over_all_recall_it_is_the_area():
    away = [200, 200, 260, 260]
    truths = [one([BOX], [0], img_id=index) for index in range(2)]
    found = [
        one([BOX], [0], [0.9], img_id=0),
        one([BOX, away], [0, 0], [0.5, 0.7], img_id=1),
    ]
    fast = FastAP(match_detections(truths, found, 1))
    assert fast.mean(levels=False) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert fast.mean() == pytest.approx(51 / 101 + 50 / 101 * 2 / 3)


def test_pairing_narrows_the_difference():
    rng = np.random.default_rng(0)
    hits = rng.random(60) < 0.6
    after = hits & (rng.random(60) < 0.8)
    benign, attacked = table_of(hits), table_of(after)
    first, second = (map_interval(t) for t in (benign, attacked))
    paired = difference_interval(benign, attacked)
    assert paired.estimate == pytest.approx(first.estimate - second.estimate)
    assert paired.high - paired.low < (first.high - first.low)
    assert paired.low > 0
    assert second.high > first.low  # the single intervals would not show it


def test_repeatable_and_wider_for_more_confidence():
    table = table_of([True, False, True, True, False, False])
    assert map_interval(table, groups=4) == map_interval(table, groups=4)
    narrow, wide = (map_interval(table, confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_without_objects_or_others_and_bad_settings():
    empty = match_detections([one([], [])], [one([], [], [])], 1)
    for table in (empty, table_of([True])):
        assert math.isnan(map_interval(table).low)
    assert math.isnan(map_interval(empty).estimate)
    with pytest.raises(ConfigError, match='two groups'):
        map_interval(table_of([True] * 3), groups=1)
    with pytest.raises(ConfigError, match='confidence'):
        map_interval(table_of([True] * 3), confidence=95)
    with pytest.raises(ConfigError, match='different images'):
        difference_interval(table_of([True]), table_of([True, False]))


def simulated(rng, num_images):
    """Two classes; what is in an image is found easily or not, together."""
    objects = rng.poisson(0.8, (num_images, 2))
    places = np.indices(objects.shape).reshape(2, -1)
    gt_image, gt_label = np.repeat(places, objects.ravel(), axis=1)
    ease = rng.normal(0, 1, num_images)
    reached = np.floor(4 * expit(ease[gt_image] + rng.normal(0, 1, len(gt_image))))
    score = expit(reached - 1 + rng.normal(0, 1, len(gt_image)))
    false = rng.integers(num_images, size=num_images)
    return MatchTable(
        img_ids=tuple(range(num_images)),
        num_classes=2,
        image=np.append(gt_image, false),
        label=np.append(gt_label, rng.integers(2, size=num_images)),
        score=np.append(score, rng.random(num_images) * 0.8),
        hit=np.arange(3)[:, None] < np.append(reached, np.zeros(num_images)),
        ignored=np.zeros((3, len(gt_image) + num_images), bool),
        gt_image=gt_image,
        gt_label=gt_label,
    )


def test_holds_the_true_map_as_often_as_it_says():
    """experiments/intervals is the study of which this is a small part."""
    rng = np.random.default_rng(0)
    true = mean_ap(simulated(rng, 20_000))
    intervals = [map_interval(simulated(rng, 20)) for _ in range(60)]
    held = np.mean([each.low <= true <= each.high for each in intervals])
    assert 0.92 <= held <= 0.98
    missed = (
        [each.high < true for each in intervals],
        [each.low > true for each in intervals],
    )
    assert max(map(np.mean, missed)) < 0.06
    # Few images make mAP too high, and the correction is towards the true value.
    mean = np.mean([each.estimate for each in intervals])
    corrected = mean - np.mean([each.bias for each in intervals])
    assert abs(corrected - true) < mean - true


def test_the_worst_case_is_searched_anew_whatever_is_left_out():
    truths, attacks = dataset(3, 6, 2, 2)
    tables = [match_detections(truths, each, 2) for each in attacks]
    choices = [np.array(each) for each in itertools.product(range(2), repeat=6)]

    def over_all_recall(counts):
        kept = counts > 0
        some = [restrict(table, kept) for table in tables]
        choice = min(choices, key=lambda each: mean_ap(combine(some, each[kept])))
        return FastAP(combine(some, choice[kept])).mean(levels=False)

    jackknife = Jackknife(6, 20, 0)
    worst = worst_case_map(tables, tolerance=0)
    expected = jackknife.around(worst.mean_ap, jackknife.values(over_all_recall), 0.95)
    found, fall = worst_case_intervals(tables, worst.assignment)
    for key in ('estimate', 'low', 'high', 'bias'):
        assert getattr(found, key) == pytest.approx(getattr(expected, key)), key
    # With the choice as it is, it would be another one.
    fixed = map_interval(combine(tables, worst.assignment))
    assert abs(found.bias - fixed.bias) > 1e-3
    assert fall.estimate == pytest.approx(mean_ap(tables[0]) - worst.mean_ap)
    assert fall.low <= fall.estimate <= fall.high


@pytest.mark.parametrize('value', [1e-4, 1 - 1e-4])
def test_next_to_the_ends_an_interval_is_not_all_of_the_range(value):
    """One of 100 images has all of it, so that the value is known to its size."""
    jackknife = Jackknife(100, 100, seed=0)
    whole = min(value, 1 - value)
    without = np.full(100, whole * 100 / 99)
    without[7] = 0
    values = np.concatenate([[whole], without])
    found = jackknife.around(value, np.abs(values - (value > 0.5)), 0.95)
    # The standard error is the value, the degrees of freedom 2.04; there is no bias.
    freedom = 200 / ((99**4 + 99) / 100 / 99**2 - 1)
    step = student.ppf(0.975, freedom) * whole / 2 / (whole * (1 - whole)) ** 0.5
    ends = [0, math.sin(math.asin(whole**0.5) + step) ** 2]
    wanted = ends if value < 0.5 else [1 - end for end in reversed(ends)]
    # At the near end logits are the nearer ones, by 2e-6.
    assert [found.low, found.high] == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert found.high - found.low < 0.003
