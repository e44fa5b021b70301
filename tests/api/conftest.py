"""Two reports of made-up detections, on the same images."""

import json

import numpy as np
import pytest
from mmrobust.analysis import (
    Detections,
    GroundTruth,
    map_interval,
    match_detections,
    write_tables,
)
from mmrobust.api import load
from mmrobust.report import AttackResult


def tables(quality):
    """A dataset of twelve images with a box each, found by chance."""
    draws = np.random.default_rng(3)
    boxes = np.array([[2, 2, 22, 22.0]])
    truths, passes = [], {name: [] for name in ('benign', 'a-eps2', 'a-eps4')}
    for key in range(12):
        labels = np.array([key % 2])
        size = dict(areas=np.array([400.0]), height=30, width=30)
        truths.append(GroundTruth(key, boxes, labels, np.zeros(1, bool), **size))
        for shift, found in zip((0, 2, 6), passes.values(), strict=True):
            moved = boxes + shift * draws.random() * (2 - quality)
            scores = np.array([draws.random()])
            found.append(Detections(key, moved, scores, labels))
    return {k: match_detections(truths, found, 2) for k, found in passes.items()}


@pytest.fixture(scope='module')
def given(tmp_path_factory):
    """Two reports, and the tables that they were made of."""
    reports, matches = {}, {}
    for name, quality in (('plain', 0.0), ('robust', 0.8)):
        folder = tmp_path_factory.mktemp(name)
        matches[name] = tables(quality)
        write_tables(folder / 'robustness.npz', matches[name])
        boxes = {
            key: {'mAP': vars(map_interval(table))}
            for key, table in matches[name].items()
        }
        attacks = [
            AttackResult(
                *(key, dict(norm='linf', eps=float(key[-1]), num_steps=5)),
                metrics={'coco/bbox_mAP': 0.1},
                boxes=boxes[key],
                images=12,
                backwards=60,
                base='a',
            ).as_dict()
            for key in ('a-eps2', 'a-eps4')
        ]
        content = dict(
            complete=True,
            checks=[f'doubt of {name}'],
            seed=0,
            space='input',
            checkpoint_sha256='0',
            dataset=dict(
                type='CocoDataset',
                ann_file='x.json',
                num_images=12,
                annotations_sha256='a' * 64,
            ),
            benign=dict(metrics={'coco/bbox_mAP': 0.2}, boxes=boxes['benign']),
            attacks=attacks,
            worst_case=None,
        )
        (folder / 'robustness.json').write_text(json.dumps(content))
        reports[name] = load(folder)
    return reports, matches
