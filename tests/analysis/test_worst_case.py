"""The greedy worst case: never above a member, never below the true optimum."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrobust.analysis import (
    coco_ap,
    combine,
    match_detections,
    mean_ap,
    restrict,
    worst_case_map,
    worst_per_image,
)
from mmrobust.analysis.average_precision import area
from mmrobust.analysis.worst_case import GreedySearch
from mmrobust.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from made_up import dataset, one

CLASSES = 3


def tables_of(seed, num_images, num_attacks, **options):
    truths, attacks = dataset(seed, num_images, CLASSES, num_attacks, **options)
    return truths, attacks, [match_detections(truths, a, CLASSES) for a in attacks]


def chosen_detections(attacks, img_ids, assignment):
    by_id = [{each.img_id: each for each in found} for found in attacks]
    return [by_id[a][i] for a, i in zip(assignment, img_ids, strict=True)]


@pytest.mark.parametrize('seed', range(8))
def test_a_restricted_table_is_that_of_some_images(seed):
    truths, attacks, tables = tables_of(seed, 10, 2)
    kept = np.random.default_rng(seed).random(10) < 0.6
    some = {tables[0].img_ids[index] for index in np.flatnonzero(kept)}
    for found, table in zip(attacks, tables, strict=True):
        expected = match_detections(
            [each for each in truths if each.img_id in some],
            [each for each in found if each.img_id in some],
            CLASSES,
        )
        ours = restrict(table, kept)
        for name, values in vars(expected).items():
            assert np.array_equal(getattr(ours, name), values), name


@pytest.mark.parametrize('seed', range(8))
def test_combined_tables_are_the_combined_detections(seed):
    truths, attacks, tables = tables_of(seed, 10, 3)
    assignment = np.random.default_rng(seed).integers(3, size=10)
    found = chosen_detections(attacks, tables[0].img_ids, assignment)
    expected = coco_ap(truths, found, CLASSES).metrics['mAP']
    assert mean_ap(combine(tables, assignment)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize('seed', range(6))
def test_every_trial_and_switch_is_exact(seed):
    truths, attacks, tables = tables_of(seed, 9, 4)
    rng = np.random.default_rng(seed)
    search = GreedySearch(tables, rng.integers(4, size=9))
    changed = 0
    for _ in range(60):
        image, attack = int(rng.integers(9)), int(rng.integers(4))
        before = search.mean_ap
        assert before == pytest.approx(
            mean_ap(combine(tables, search.assignment)), abs=1e-12
        )
        other = search.assignment.copy()
        other[image] = attack
        expected = mean_ap(combine(tables, other))
        change = search.change(image, attack)
        assert before + change == pytest.approx(expected, abs=1e-12)
        changed += abs(change) > 1e-6
        # The bound that spares trials never says too much, and often says all.
        assert search.least_change(image, attack) <= change + 1e-12
        if rng.random() < 0.5:
            search.switch(image, attack)
            assert search.mean_ap == pytest.approx(expected, abs=1e-12)
    assert changed > 10
    # And by pycocotools, at the end of it all.
    found = chosen_detections(attacks, tables[0].img_ids, search.assignment)
    expected = coco_ap(truths, found, CLASSES).metrics['mAP']
    assert search.mean_ap == pytest.approx(expected, abs=1e-9)


def test_between_the_optimum_and_the_best_member():
    """And often the optimum, which neither a member nor the choice per image is."""
    optimal = better = runs = 0
    for seed in range(40):
        _, _, tables = tables_of(seed, 4, 3)
        result = worst_case_map(tables, seed=seed, tolerance=0)
        choices = map(np.array, itertools.product(range(3), repeat=4))
        lowest = min(mean_ap(combine(tables, choice)) for choice in choices)
        if np.isnan(lowest):  # no object was drawn
            assert np.isnan(result.mean_ap)
            continue
        best = min(result.single.min(), result.per_image)
        assert lowest - 1e-12 <= result.mean_ap <= best
        assert result.mean_ap == mean_ap(combine(tables, result.assignment))
        runs += 1
        optimal += result.mean_ap <= lowest + 1e-12
        better += result.mean_ap < best - 1e-6
    assert optimal > runs / 2
    assert better > runs / 4


@pytest.mark.parametrize('seed', range(10))
def test_never_above_a_member_and_a_local_optimum(seed):
    num_attacks = 2 + seed % 4
    truths, attacks, tables = tables_of(seed, 25, num_attacks, strength=seed / 25)
    result = worst_case_map(tables, seed=seed, tolerance=0)
    members = [coco_ap(truths, a, CLASSES).metrics['mAP'] for a in attacks]
    np.testing.assert_allclose(result.single, members, atol=1e-9)
    chosen, _ = worst_per_image(tables)
    assert result.per_image == mean_ap(combine(tables, chosen))
    assert result.mean_ap <= min(*result.single, result.per_image)
    assert result.converged
    assert result.switches > 0
    found = chosen_detections(attacks, tables[0].img_ids, result.assignment)
    expected = coco_ap(truths, found, CLASSES).metrics['mAP']
    assert result.mean_ap == pytest.approx(expected, abs=1e-9)
    for image, attack in itertools.product(range(25), range(num_attacks)):
        other = result.assignment.copy()
        other[image] = attack
        assert mean_ap(combine(tables, other)) >= result.mean_ap - 1e-11


def test_where_the_worst_of_each_image_is_not_the_worst_of_all():
    # Image 1: attack 0 loses the object; attack 1 keeps it at 0.3 and adds two errors
    # at 1.0. In the image alone both are bad; over both images the errors at 1.0 come
    # before image 2's hit at 0.9 and cost more than the lost object.
    box, away = [0, 0, 50, 50], [100, 100, 200, 200]
    truths = [one([box], [0], img_id=1), one([box], [0], img_id=2)]
    kept = one([box], [0], [0.9], img_id=2)
    lost = [one([], [], [], img_id=1), kept]
    noisy = [one([box, away, away], [0, 0, 0], [0.3, 1.0, 1.0], img_id=1), kept]
    tables = [match_detections(truths, found, 1) for found in (lost, noisy)]
    result = worst_case_map(tables)
    assert result.single[0] == pytest.approx(51 / 101)
    assert result.single[1] == pytest.approx(0.5)
    assert result.per_image == pytest.approx(51 / 101)
    assert result.assignment[0] == 1
    assert result.mean_ap == pytest.approx(0.5)


def test_empty_images_and_crowds_count_as_in_coco():
    """Against pycocotools, for every choice there is."""
    box, away, off = [0, 0, 50, 50], [200, 200, 260, 260], [310, 0, 350, 50]
    truths = [
        one([box], [0], img_id=1),
        one([], [], img_id=2),
        one([box, [100, 100, 300, 300]], [0, 0], img_id=3, ignore=[False, True]),
    ]
    nothing = one([], [], [], img_id=2)
    benign = [
        one([box], [0], [0.8], img_id=1),
        nothing,
        one([box], [0], [0.5], img_id=3),
    ]
    # One attack adds detections everywhere, another one only inside the crowd.
    everywhere = [
        one([box, away], [0, 0], [0.8, 0.1], img_id=1),
        one([box, away], [0, 0], [0.9, 0.7], img_id=2),
        one([box, away, off], [0, 0, 0], [0.5, 0.95, 0.6], img_id=3),
    ]
    crowded = one([box, away, away], [0, 0, 0], [0.5, 0.9, 0.8], img_id=3)
    attacks = [benign, everywhere, [benign[0], nothing, crowded]]
    tables = [match_detections(truths, each, 1) for each in attacks]
    by_coco = {}
    for choice in itertools.product(range(3), repeat=3):
        shown = chosen_detections(attacks, tables[0].img_ids, choice)
        by_coco[choice] = coco_ap(truths, shown, 1).metrics['mAP']
        ours = mean_ap(combine(tables, np.array(choice)))
        assert ours == pytest.approx(by_coco[choice], abs=1e-12)
    worst = worst_case_map(tables, tolerance=0)
    assert worst.mean_ap == pytest.approx(min(by_coco.values()), abs=1e-12)
    # By score: an error, a hit, two errors (one in the empty picture, one beside the
    # crowd) and a hit; what lies in the crowd does not count.
    assert worst.mean_ap == pytest.approx(51 / 101 / 2 + 50 / 101 * 2 / 5)
    assert worst.assignment[1:].tolist() == [1, 1]
    assert by_coco[0, 0, 2] == by_coco[0, 0, 0] == pytest.approx(1)


def test_the_bound_is_the_slope():
    # Errors only: their number counts, so a small share of the detections is linear.
    rng = np.random.default_rng(0)
    truths, found, more = [], [], []
    for index in range(400):
        box, away = [0, 0, 50, 50], [100, 100, 200, 200]
        truths.append(one([box], [0], img_id=index))
        scores = rng.random(2)
        found.append(one([box, away], [0, 0], scores, img_id=index))
        extra = [*scores, rng.random()]
        more.append(one([box, away, away], [0, 0, 0], extra, img_id=index))
    tables = [match_detections(truths, each, 1) for each in (found, more)]
    # The image's hit stays, so its events are left out of the bound.
    search = GreedySearch(tables, np.zeros(400, dtype=int))
    pool = search._pools[0]
    ranks = pool._ranks
    for rank in ranks[::50]:
        place = np.searchsorted(ranks, rank)
        hits, misses, gains = pool._hits, pool._misses, pool._gains
        step = 1e-4 * (np.arange(len(ranks)) >= place)
        # To both sides: where two hits have the same precision the slope has a kink.
        below = (pool.ap - area(hits, misses - step, gains)) / 1e-4
        above = (area(hits, misses + step, gains) - pool.ap) / 1e-4
        assert 1.01 * below - 1e-9 <= pool._slope[place] <= 0.99 * above + 1e-9
        assert above < 0
    assert pool._slope[-1] == 0


def test_repeatable_and_limited():
    _, _, tables = tables_of(3, 30, 4)
    first, second = (worst_case_map(tables, seed=1) for _ in range(2))
    assert (first.assignment == second.assignment).all()
    assert first.mean_ap == second.mean_ap
    start = worst_case_map(tables, max_rounds=0)
    assert start.switches == 0
    assert not start.converged
    assert start.mean_ap == min(start.single.min(), start.per_image)
    one_round = worst_case_map(tables, seed=1, max_rounds=1)
    assert first.mean_ap <= one_round.mean_ap < start.mean_ap
    alone = worst_case_map(tables[:1])
    assert alone.mean_ap == alone.single[0]


def test_a_dataset_without_objects_has_no_worst_case():
    truths = [one([], [], img_id=index) for index in range(2)]
    found = [one([[0, 0, 9, 9]], [0], [0.5], img_id=index) for index in range(2)]
    table = match_detections(truths, found, 1)
    assert np.isnan(worst_case_map([table, table]).mean_ap)


def test_bad_settings_are_refused():
    _, _, tables = tables_of(0, 4, 2)
    with pytest.raises(ConfigError, match='negative'):
        worst_case_map(tables, tolerance=-1)
    with pytest.raises(ConfigError, match='no attack'):
        worst_case_map([])
    _, _, others = tables_of(1, 4, 2)
    with pytest.raises(ConfigError, match='different images'):
        worst_case_map([tables[0], others[0]])
