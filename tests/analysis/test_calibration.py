"""LRP, optimal LRP and LaECE: by hand, and against a second implementation."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from mmrobust.analysis import (
    Detections,
    GroundTruth,
    calibration,
    class_matches,
    deployed_thresholds,
)

sys.path.insert(0, str(Path(__file__).parent))
import made_up

CLASSES = 3


def truth(img_id, boxes, labels, ignore=()):
    count = len(boxes)
    return GroundTruth(
        img_id=img_id,
        bboxes=np.array(boxes, float).reshape(-1, 4),
        labels=np.array(labels, int),
        ignore=np.array([i in ignore for i in range(count)], bool),
        areas=np.full(count, 100.0),
        height=100,
        width=100,
    )


def found(img_id, boxes, scores, labels):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return Detections(img_id, boxes, np.array(scores, float), np.array(labels, int))


def test_by_hand():
    """One class: hits of IoU 0.8 and 0.3, one false detection, one missed object."""
    truths = [
        truth(1, [[0, 0, 10, 10], [40, 40, 50, 50]], [0, 0]),
        truth(2, [[0, 0, 10, 10]], [0]),
    ]
    detections = [
        found(1, [[0, 0, 8, 10], [70, 70, 90, 90]], [0.9, 0.5], [0, 0]),
        found(2, [[0, 0, 3, 10]], [0.31], [0]),
    ]
    matches = class_matches(truths, detections, 2)  # nothing of the second class
    thresholds = deployed_thresholds(matches)
    # Above 0.9: 0.2 / 0.9 and two missed, of three. Above 0.31: with 0.7 / 0.9, one
    # false and one missed, of four.
    first, all_of_them = (0.2 / 0.9 + 2) / 3, ((0.2 + 0.7) / 0.9 + 1 + 1) / 4
    assert first < all_of_them
    assert thresholds == pytest.approx([0.7, math.nan], nan_ok=True)  # of 0.9 and 0.5
    result = calibration(matches, thresholds)
    assert result['LRP'] == pytest.approx(first)
    assert result['LRP_loc'] == pytest.approx(0.2)
    assert result['LRP_fp'] == 0
    assert result['LRP_fn'] == pytest.approx(2 / 3)
    assert result['LaECE'] == pytest.approx(0.1)  # 0.9 for an IoU of 0.8
    # From an IoU of 0.5 there is one hit, and the best is to keep no other.
    assert result['oLRP'] == pytest.approx((0.2 / 0.5 + 2) / 3)
    everything = calibration(matches, [0.0, 0.0])
    assert everything['LRP'] == pytest.approx(all_of_them)
    # Three bins of one detection each: |0.8 - 0.9|, |0 - 0.5|, |0.3 - 0.31|
    assert everything['LaECE'] == pytest.approx((0.1 + 0.5 + 0.01) / 3)


def test_in_a_bin_errors_cancel():
    """0.81 and 0.83 share a bin: the mean score 0.82 against (1 + 0) / 2."""
    truths = [truth(1, [[0, 0, 10, 10]], [0])]
    boxes = [[0, 0, 10, 10], [60, 60, 80, 80]]
    matches = class_matches(truths, [found(1, boxes, [0.81, 0.83], [0, 0])], 1)
    assert calibration(matches, [0.0])['LaECE'] == pytest.approx(0.32)
    sure = class_matches(truths, [found(1, boxes[:1], [1.0], [0])], 1)
    assert calibration(sure, [0.0])['LaECE'] == 0  # the last bin has its upper end


def test_without_detections_and_without_objects():
    truths = [truth(1, [[0, 0, 10, 10]], [0])]
    nothing = class_matches(truths, [found(1, [], [], [])], 2)
    result = calibration(nothing, [0.0, 0.0])
    assert result['LRP'] == result['oLRP'] == result['LRP_fn'] == 1
    assert result['LaECE'] is None
    assert result['LRP_loc'] is None
    other = class_matches([truth(1, [], [])], [found(1, [[0, 0, 9, 9]], [0.5], [1])], 2)
    assert calibration(other, [0.0, 0.0]) == dict.fromkeys(result)
    # Clean pictures that do not show a class say nothing of its threshold.
    both = truth(1, [[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    seen = found(1, both.bboxes, [0.8, 0.8], [0, 1])
    matches = class_matches([both], [seen], 2)
    assert calibration(matches, [0.5, math.nan])['LRP'] == 0
    assert calibration(matches, [0.5, math.inf])['LRP'] == 0.5


# ------------------------------------------------------------- a second implementation


def overlap(one, other, crowd):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    sizes = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return common / (sizes[0] if crowd else sizes[0] + sizes[1] - common)


def slowly(truths, detections, label, tau, threshold):
    """Detections (score, IoU or None) of a class that count, and its objects."""
    rows, objects = [], 0
    by_id = {each.img_id: each for each in detections}
    for each in truths:
        mine, taken = by_id[each.img_id], set()
        order = sorted(
            (i for i in range(len(mine)) if mine.labels[i] == label),
            key=lambda i: -mine.scores[i],
        )
        own = [j for j in range(len(each)) if each.labels[j] == label]
        objects += sum(not each.ignore[j] for j in own)
        for i in order:
            if mine.scores[i] < threshold:
                continue
            best = {True: (tau, None), False: (tau, None)}  # by ignored or not
            for j in own:
                ignored = bool(each.ignore[j])
                value = overlap(mine.bboxes[i], each.bboxes[j], ignored)
                if value >= best[ignored][0] and (ignored or j not in taken):
                    best[ignored] = value, j
            if best[False][1] is not None:
                taken.add(best[False][1])
                rows.append((mine.scores[i], best[False][0]))
            elif best[True][1] is None:
                rows.append((mine.scores[i], None))
    return rows, objects


def lrp_slowly(rows, objects, tau):
    hits = [iou for _, iou in rows if iou is not None]
    wrong = len(rows) - len(hits) + objects - len(hits)
    return (sum((1 - iou) / (1 - tau) for iou in hits) + wrong) / (len(hits) + wrong)


def best_slowly(truths, detections, label, tau):
    scores = {float(s) for d in detections for s in d.scores[d.labels == label]}
    tried = [
        (lrp_slowly(*slowly(truths, detections, label, tau, score), tau), score)
        for score in sorted(scores, reverse=True)
    ]
    return min([(1.0, math.inf), *tried], key=lambda pair: pair[0])


def laece_slowly(rows):
    total = 0.0
    for place in range(25):
        low, high = place / 25, (place + 1) / 25 if place < 24 else 2
        inside = [(s, iou or 0) for s, iou in rows if low <= s < high]
        if inside:
            share = len(inside) / len(rows)
            mean = [sum(column) / len(inside) for column in zip(*inside, strict=True)]
            total += share * abs(mean[0] - mean[1])
    return total


@pytest.mark.parametrize('seed', range(3))
def test_a_second_implementation_agrees(seed):
    rng = np.random.default_rng(seed)
    truths = [made_up.truth(rng, img_id, CLASSES) for img_id in range(8)]
    clean, attacked = (
        [made_up.detect(rng, each, CLASSES, strength=strength) for each in truths]
        for strength in (0.2, 0.6)
    )
    matches = class_matches(truths, clean, CLASSES)
    thresholds, ours = deployed_thresholds(matches), matches[1]
    expected = [best_slowly(truths, clean, label, 0.1)[1] for label in range(CLASSES)]
    for own, least, each in zip(thresholds, expected, ours, strict=True):
        assert (own <= least) & (own > each.scores[each.scores < least]).all()
    result = calibration(class_matches(truths, attacked, CLASSES), thresholds)
    optimal, deployed, errors = [], [], []
    for label, threshold in enumerate(thresholds):
        rows, objects = slowly(truths, attacked, label, 0.1, threshold)
        if not objects:
            continue
        optimal.append(best_slowly(truths, attacked, label, 0.5)[0])
        deployed.append(lrp_slowly(rows, objects, 0.1))
        if rows:
            errors.append(laece_slowly(rows))
    assert len(errors) > 1
    assert result['oLRP'] == pytest.approx(np.mean(optimal))
    assert result['LRP'] == pytest.approx(np.mean(deployed))
    assert result['LaECE'] == pytest.approx(np.mean(errors))
