"""Each type of error on a case made for it, and sums that add up."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
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


CASES = [  # objects and detections as (box, class), scores, the counts that are not 0
    ([(BOX, 0)], [(NEAR, 0)], [0.9], dict(correct=1, objects_found=1)),
    ([(BOX, 0)], [], [], dict(missed=1)),
    # Below the default threshold of 0.3 there is no detection.
    ([(BOX, 0)], [(BOX, 0)], [0.29], dict(missed=1)),
    ([(BOX, 0)], [(BOX, 0)], [0.3], dict(correct=1, objects_found=1)),
    ([(BOX, 0)], [(NEAR, 1)], [0.9], dict(misclassified=1, objects_misclassified=1)),
    ([(BOX, 0)], [(HALF, 0)], [0.9], dict(mislocalised=1, objects_mislocalised=1)),
    ([(BOX, 0)], [(HALF, 1)], [0.9], dict(both=1, missed=1)),
    ([(BOX, 0)], [(FAR, 0)], [0.9], dict(hallucinated=1, missed=1)),
    ([(BOX, 0)], [(SLIVER, 0)], [0.9], dict(hallucinated=1, missed=1)),
    ([], [(FAR, 0)], [0.9], dict(hallucinated=1)),
    (
        [(BOX, 0)],
        [(BOX, 0), (NEAR, 0)],
        [0.8, 0.9],
        dict(correct=1, duplicate=1, objects_found=1),
    ),
    # A wrong class on an object that is found takes nothing from it.
    (
        [(BOX, 0)],
        [(BOX, 0), (NEAR, 1)],
        [0.8, 0.9],
        dict(correct=1, misclassified=1, objects_found=1),
    ),
    # The larger overlap says what an object that is not found became,
    (
        [(BOX, 0)],
        [(HALF, 0), (NEAR, 1)],
        [0.8, 0.9],
        dict(mislocalised=1, misclassified=1, objects_misclassified=1),
    ),
    # and what a detection is: IoU 0.6 with another class's object, 0.4 with its own.
    (
        [(NEAR, 0), ([0, 60, 100, 100], 1)],
        [([0, 24, 100, 84], 1)],
        [0.9],
        dict(mislocalised=1, objects_mislocalised=1, missed=1),
    ),
    # 0.6 with class 0, 0.5 with class 1: its own class comes first, and matches.
    (
        [(BOX, 0), ([0, 0, 100, 30], 1)],
        [(NEAR, 1)],
        [0.9],
        dict(correct=1, objects_found=1, missed=1),
    ),
    (
        [(BOX, 0), ([0, 0, 100, 29], 1)],
        [(NEAR, 1)],
        [0.9],
        dict(misclassified=1, objects_misclassified=1, missed=1),
    ),
]
# Any number of detections of the class inside a crowd, and it need not be found.
CROWDS = [
    ([(BOX, 0)], [(HALF, 0), (NEAR, 0)], [0.9, 0.8], dict(ignored=2)),
    ([(BOX, 0)], [(HALF, 1)], [0.9], dict(misclassified=1)),
    ([(BOX, 0)], [(FAR, 0)], [0.9], dict(hallucinated=1)),
]


@pytest.mark.parametrize(
    ('objects', 'found', 'scores', 'expected', 'crowd'),
    [(*case, None) for case in CASES] + [(*case, [True]) for case in CROWDS],
)
def test_each_type_of_error(objects, found, scores, expected, crowd):
    truth = one([box for box, _ in objects], [k for _, k in objects], ignore=crowd)
    detections = one([box for box, _ in found], [k for _, k in found], scores)
    result = count_errors([truth], [detections], 3)
    assert {name: n for name, n in asdict(result).items() if n} == expected


@pytest.mark.parametrize('seed', range(6))
def test_counts_add_up(seed):
    truths, (found,) = dataset(seed, 30, 3)
    result = count_errors(truths, found, 3, score_thr=0.3)
    kept = [each.above(0.3) for each in found]
    names = [field.name for field in fields(result)]
    numbers = asdict(result)
    assert sum(numbers[n] for n in names[:7]) == sum(len(each) for each in kept)
    objects = sum(int((~real.ignore).sum()) for real in truths)
    assert sum(numbers[n] for n in names[7:]) == objects
    table = match_detections(truths, kept, 3)
    assert result.correct == result.objects_found == table.hit[0].sum()
    assert result.ignored == table.ignored[0].sum()
    assert min(result.misclassified, result.mislocalised, result.both) > 0
    assert min(result.duplicate, result.hallucinated, result.missed) > 0
    parts = [count_errors([t], [f], 3) for t, f in zip(truths, found, strict=True)]
    assert {n: sum(asdict(part)[n] for part in parts) for n in names} == numbers


def test_bad_threshold_is_refused():
    with pytest.raises(ConfigError, match='score_thr'):
        count_errors([one([], [])], [one([], [], [])], 3, score_thr=30)
