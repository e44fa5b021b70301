"""The score of a single image, against a plain loop and by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mmrobust.analysis import (
    broken,
    image_score,
    image_scores,
    match_detections,
    worst_per_image,
)
from mmrobust.analysis.matching import match_image
from mmrobust.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from made_up import dataset, one

BOX, AWAY = [10, 10, 110, 110], [200, 200, 300, 300]


def by_thresholds(truth, found, steps=1000):
    """The definition as it stands: match anew at each of many thresholds."""
    total = []
    for step in range(steps):
        kept = found.above((step + 0.5) / steps)
        _, hit, ignored = match_image(truth, kept)
        hits, errors = hit.sum(1), (~hit & ~ignored).sum(1)
        union = (~truth.ignore).sum() + errors
        total.append(np.where(union > 0, hits / np.maximum(union, 1), 1).mean())
    return float(np.mean(total))


@pytest.mark.parametrize('seed', range(3))
def test_equals_its_definition(seed):
    truths, (found,) = dataset(seed, 6, 3, dtype=np.float64)
    table = match_detections(truths, found, 3)
    scores = dict(zip(table.img_ids, image_scores(table), strict=True))
    for truth, each in zip(truths, found, strict=True):
        # Scores have at most three decimals, on which the thresholds never fall.
        expected = by_thresholds(truth, each)
        assert scores[truth.img_id] == pytest.approx(expected, abs=1e-9)
    assert len(set(scores.values())) > 3


def score(truth_boxes, labels, boxes, found_labels, scores, **options):
    truth = one(truth_boxes, labels, **options)
    return image_score(truth, one(boxes, found_labels, scores), 3)


def test_by_hand():
    assert score([BOX], [0], [BOX], [0], [1.0]) == 1
    assert score([BOX], [0], [BOX], [0], [0.75]) == pytest.approx(0.75)
    assert score([BOX, AWAY], [0, 0], [BOX], [0], [1.0]) == pytest.approx(0.5)
    # IoU 0.8: right at seven of the ten thresholds, wrong place at the others.
    assert score([BOX], [0], [[10, 10, 110, 90]], [0], [1.0]) == pytest.approx(0.7)
    # Sure of the wrong class; then the object is not found at all.
    assert score([BOX], [0], [BOX], [1], [1.0]) == 0
    assert score([BOX], [0], [], [], []) == 0


def test_each_kind_of_error_lowers_it():
    good = score([BOX], [0], [BOX], [0], [0.9])
    hallucination = score([BOX], [0], [BOX, AWAY], [0, 2], [0.9, 0.8])
    # Above 0.8 right, below one of two: 0.1 * 1 + 0.8 * 1 / 2.
    assert hallucination == pytest.approx(0.5)
    assert good == pytest.approx(0.9)
    assert score([BOX], [0], [BOX, BOX], [0, 0], [0.9, 0.8]) == pytest.approx(0.5)
    junk = score([BOX], [0], [BOX] + 50 * [AWAY], [0] + 50 * [1], [0.9] + 50 * [0.05])
    assert 0.85 < junk < good


def test_without_objects():
    assert score([], [], [], [], []) == 1
    found = score([], [], [BOX, AWAY], [0, 0], [0.3, 0.2])
    assert found == pytest.approx(0.7)
    # Nor are objects to be ignored any, and a detection on them is no error.
    crowd = dict(ignore=[True])
    assert score([BOX], [0], [BOX], [0], [0.9], **crowd) == 1
    assert score([BOX], [0], [AWAY], [0], [0.9], **crowd) == pytest.approx(0.1)


def test_confidence_outside_0_to_1_counts_as_the_bound():
    assert score([BOX], [0], [BOX, AWAY], [0, 1], [7.0, -2.0]) == 1


def test_broken():
    benign = np.array([0.8, 0.8, 0.0, 0.5])
    attacked = np.array([0.08, 0.09, 0.0, 0.0])
    assert broken(attacked, benign).tolist() == [True, False, True, True]
    assert broken(attacked, benign, 0.0).tolist() == [False, False, True, True]
    with pytest.raises(ConfigError, match='fraction'):
        broken(attacked, benign, 1.0)


def test_worst_per_image():
    truths, attacks = dataset(5, 10, 3, num_attacks=4)
    tables = [match_detections(truths, found, 3) for found in attacks]
    chosen, lowest = worst_per_image(tables)
    everything = np.stack([image_scores(table) for table in tables])
    for image in range(10):
        assert lowest[image] == everything[chosen[image], image]
        assert (lowest[image] <= everything[:, image]).all()
    assert len(set(chosen.tolist())) > 1
    # The benign pass as a member in front: it is kept where nothing is worse.
    same, _ = worst_per_image([tables[0], tables[0]])
    assert not same.any()
    with pytest.raises(ConfigError, match='different images'):
        worst_per_image([tables[0], match_detections(truths[1:], attacks[0][1:], 3)])
