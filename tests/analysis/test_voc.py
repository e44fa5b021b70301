"""Tables of VOC's matching against mmdet's own figures."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from mmdet.evaluation import eval_map

from mmrobust.analysis import (
    combine,
    map_interval,
    match_as_voc,
    mean_ap,
    read_tables,
    worst_case_map,
    write_tables,
)

from . import made_up

CLASSES = 3


def as_voc(truth, found, draws):
    """An image as VOCMetric keeps it; some objects are ignored ones."""
    # Not rounded: equal scores have no order in mmdet.
    scores = (found.scores + draws.uniform(0, 1e-3, len(found)))[:, None]
    rows = np.hstack([found.bboxes, scores]).astype(np.float32)
    boxes = truth.bboxes.astype(np.float32)
    annotations = dict(
        bboxes=boxes[~truth.ignore],
        labels=truth.labels[~truth.ignore],
        bboxes_ignore=boxes[truth.ignore],
        labels_ignore=truth.labels[truth.ignore],
    )
    return annotations, [rows[found.labels == kind] for kind in range(CLASSES)]


def attacked(seed, num_images, num_attacks=1):
    truths, attacks = made_up.dataset(seed, num_images, CLASSES, num_attacks)
    draws = np.random.default_rng(seed)
    return [
        [as_voc(*pair, draws) for pair in zip(truths, found, strict=True)]
        for found in attacks
    ]


def by_mmdet(images, ious, mode):
    truths, found = zip(*images, strict=True)
    options = dict(eval_mode=mode, use_legacy_coordinate=True, nproc=1, logger='silent')
    return np.mean([eval_map(found, truths, iou_thr=iou, **options)[0] for iou in ious])


@pytest.mark.parametrize(
    ('seed', 'ious', 'mode'),
    [(0, [0.5], '11points'), (1, [0.3, 0.6], 'area'), (2, [0.5, 0.75], '11points')],
)
def test_the_map_is_mmdets(seed, ious, mode, tmp_path):
    (images,) = attacked(seed, 20)
    table = match_as_voc(images, range(20), CLASSES, ious, mode)
    expected = by_mmdet(images, ious, mode)
    assert 0.05 < expected < 0.95
    assert mean_ap(table) == pytest.approx(expected, abs=1e-6)
    # COCO's levels of recall are others.
    assert abs(mean_ap(replace(table, points=101)) - expected) > 1e-4
    interval = map_interval(table)
    assert interval.low < interval.estimate < interval.high
    write_tables(tmp_path / 'a.npz', {'a': table})
    again = read_tables(tmp_path / 'a.npz')['a']
    assert again.points == table.points
    assert mean_ap(again) == mean_ap(table)


@pytest.mark.parametrize('mode', ['11points', 'area'])
def test_a_worst_case_is_between_the_optimum_and_the_best_member(mode):
    for seed in range(3, 7):
        tables = [
            match_as_voc(images, range(4), CLASSES, [0.5], mode)
            for images in attacked(seed, 4, 2)
        ]
        found = worst_case_map(tables, tolerance=0)
        choices = map(np.array, itertools.product(range(2), repeat=4))
        lowest = min(mean_ap(combine(tables, choice)) for choice in choices)
        assert lowest - 1e-12 <= found.mean_ap <= min(found.single) + 1e-12
        chosen = mean_ap(combine(tables, found.assignment))
        assert found.mean_ap == pytest.approx(chosen, abs=1e-12)
