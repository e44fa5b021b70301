"""AP by the distance from patches, and false detections on them, counted by hand."""

import numpy as np
import pytest

from analysis.made_up import detect, truth
from mmrobust.analysis import Detections, GroundTruth, coco_ap, patch_figures
from mmrobust.analysis.patches import distances

PATCHES = {0: [[15.0, 15, 25, 25]]}
# Under the patch; 35 pixels or 1.75 sides from it; where there is none.
NEAR, AWAY, ELSEWHERE = (10, 10, 30, 30), (60, 10, 80, 30), (10, 10, 30, 30)


def objects(img_id, *boxes):
    sides = np.array(boxes, float)
    count = len(sides)
    return GroundTruth(
        img_id=img_id,
        bboxes=sides,
        labels=np.zeros(count, int),
        ignore=np.zeros(count, bool),
        areas=np.full(count, 400.0),
        height=100,
        width=100,
    )


def found(img_id, *boxes, score=0.9):
    count = len(boxes)
    return Detections(
        img_id, np.array(boxes, float), np.full(count, score), np.zeros(count, int)
    )


TRUTHS = [objects(0, NEAR, AWAY), objects(1, ELSEWHERE)]


def near(result):
    return tuple(each if each is None else round(each, 6) for each in result.near)


def figures(first, second=(ELSEWHERE,)):
    return patch_figures(TRUTHS, [found(0, *first), found(1, *second)], PATCHES, 1)


def test_objects_are_sorted_by_their_distance():
    result = figures([NEAR, AWAY])
    assert result.objects == (1, 0, 1, 1)
    assert result.images == 1
    assert near(result) == (1, None, 1, 1)
    assert result.mean_ap == 1
    assert result.on_patch == 0


@pytest.mark.parametrize(
    ('first', 'second', 'wanted'),
    [([AWAY], [ELSEWHERE], (0, None, 1, 1)), ([NEAR], [], (1, None, 0, 0))],
)
def test_what_is_missed_counts_in_its_bin_alone(first, second, wanted):
    assert near(figures(first, second)) == wanted


def test_a_false_detection_on_a_patch_counts_apart():
    inside = (16, 16, 24, 24)
    result = figures([NEAR, AWAY, inside])
    assert (result.on_patch, result.mean_ap, near(result)[0]) == (1, 1, 1)
    # Nor is a second one of the object that lies under the patch, as in COCO's AP.
    result = figures([NEAR, AWAY, (11, 10, 30, 30)])
    assert result.on_patch == 0
    # One of low score is none that people see.
    seen = Detections(0, np.array([inside], float), np.array([0.2]), np.zeros(1, int))
    assert patch_figures(TRUTHS, [seen, found(1)], PATCHES, 1).on_patch == 0


def test_a_false_detection_elsewhere_counts_where_it_is():
    """It comes before the only hit of its bin, which halves the precision."""
    # 45 pixels or 2.25 sides away.
    false = Detections(
        *(0, np.array([NEAR, AWAY, (70, 50, 90, 70)], float)),
        *(np.array([0.9, 0.9, 0.95]), np.zeros(3, int)),
    )
    result = patch_figures(TRUTHS, [false, found(1, ELSEWHERE)], PATCHES, 1)
    assert near(result) == (1, None, 1, 0.5)


def test_without_patches_it_is_the_map_of_coco():
    rng = np.random.default_rng(0)
    truths = [truth(rng, img_id, 3) for img_id in range(6)]
    detections = [detect(rng, each, 3) for each in truths]
    result = patch_figures(truths, detections, {}, 3)
    assert result.mean_ap == coco_ap(truths, detections, 3).metrics['mAP']
    assert result.near == (None, None, None, result.mean_ap)
    assert (result.images, result.on_patch) == (0, 0)


def test_distances_are_gaps_in_sides():
    boxes = np.array([[0, 0, 10, 10], [13, 14, 23, 24], [30, 0, 40, 40]], float)
    found = distances(boxes, np.array([[0, 0, 10, 10], [2, 2, 5, 5]], float))
    assert found.tolist() == [0, 0.5, 1.0]
