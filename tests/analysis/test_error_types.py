"""Each type of error on a case made for it, and sums that add up."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from mmrobust.analysis import count_errors, match_detections
from mmrobust.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from made_up import dataset, one

BOX, FAR = [0, 0, 100, 100], [200, 200, 300, 300]
HALF = [0, 0, 100, 40]  # IoU 0.4 with BOX
NEAR = [0, 0, 100, 60]  # IoU 0.6
SLIVER = [0, 0, 100, 9]  # IoU 0.09


def counts(boxes, labels, found, found_labels, scores, **options):
    """The counts that are not 0."""
    truth = one(boxes, labels, **options)
    result = count_errors([truth], [one(found, found_labels, scores)], 3)
    assert result.correct == result.objects_found
    return {name: value for name, value in asdict(result).items() if value}


def test_correct():
    assert counts([BOX], [0], [NEAR], [0], [0.9]) == dict(correct=1, objects_found=1)


def test_missed():
    assert counts([BOX], [0], [], [], []) == dict(missed=1)
    # Below the default threshold of 0.3 there is no detection.
    assert counts([BOX], [0], [BOX], [0], [0.29]) == dict(missed=1)
    assert counts([BOX], [0], [BOX], [0], [0.3]) == dict(correct=1, objects_found=1)


def test_misclassified():
    found = counts([BOX], [0], [NEAR], [1], [0.9])
    assert found == dict(misclassified=1, objects_misclassified=1)


def test_mislocalised():
    found = counts([BOX], [0], [HALF], [0], [0.9])
    assert found == dict(mislocalised=1, objects_mislocalised=1)


def test_both():
    assert counts([BOX], [0], [HALF], [1], [0.9]) == dict(both=1, missed=1)


def test_hallucinated():
    assert counts([BOX], [0], [FAR], [0], [0.9]) == dict(hallucinated=1, missed=1)
    assert counts([BOX], [0], [SLIVER], [0], [0.9]) == dict(hallucinated=1, missed=1)
    assert counts([], [], [FAR], [0], [0.9]) == dict(hallucinated=1)


def test_duplicate():
    found = counts([BOX], [0], [BOX, NEAR], [0, 0], [0.8, 0.9])
    assert found == dict(correct=1, duplicate=1, objects_found=1)


def test_an_object_is_counted_once():
    # A wrong class on an object that is found takes nothing from it.
    found = counts([BOX], [0], [BOX, NEAR], [0, 1], [0.8, 0.9])
    assert found == dict(correct=1, misclassified=1, objects_found=1)
    # The larger overlap says what an object that is not found became.
    found = counts([BOX], [0], [HALF, NEAR], [0, 1], [0.8, 0.9])
    assert found == dict(mislocalised=1, misclassified=1, objects_misclassified=1)


def test_the_larger_overlap_decides():
    # IoU 0.6 with another class's object and 0.4 with one of its own.
    found = counts([NEAR, [0, 60, 100, 100]], [0, 1], [[0, 24, 100, 84]], [1], [0.9])
    assert found == dict(mislocalised=1, objects_mislocalised=1, missed=1)
    found = counts([BOX, [0, 0, 100, 30]], [0, 1], [NEAR], [1], [0.9])
    # 0.6 with class 0, 0.5 with class 1: its own class comes first, and matches.
    assert found == dict(correct=1, objects_found=1, missed=1)
    found = counts([BOX, [0, 0, 100, 29]], [0, 1], [NEAR], [1], [0.9])
    assert found == dict(misclassified=1, objects_misclassified=1, missed=1)


def test_crowds():
    crowd = dict(ignore=[True])
    # Any number of detections of the class inside it, and it need not be found.
    found = counts([BOX], [0], [HALF, NEAR], [0, 0], [0.9, 0.8], **crowd)
    assert found == dict(ignored=2)
    assert counts([BOX], [0], [HALF], [1], [0.9], **crowd) == dict(misclassified=1)
    assert counts([BOX], [0], [FAR], [0], [0.9], **crowd) == dict(hallucinated=1)


@pytest.mark.parametrize('seed', range(6))
def test_counts_add_up(seed):
    truths, (found,) = dataset(seed, 30, 3)
    result = count_errors(truths, found, 3, score_thr=0.3)
    kept = [each.above(0.3) for each in found]
    assert result.num_detections == sum(len(each) for each in kept)
    assert result.num_objects == sum(int((~real.ignore).sum()) for real in truths)
    table = match_detections(truths, kept, 3)
    assert result.correct == result.objects_found == table.hit[0].sum()
    assert result.ignored == table.ignored[0].sum()
    assert min(result.misclassified, result.mislocalised, result.both) > 0
    assert min(result.duplicate, result.hallucinated, result.missed) > 0
    parts = [count_errors([t], [f], 3) for t, f in zip(truths, found, strict=True)]
    assert sum(parts[1:], start=parts[0]) == result


def test_bad_threshold_is_refused():
    with pytest.raises(ConfigError, match='score_thr'):
        count_errors([one([], [])], [one([], [], [])], 3, score_thr=30)
