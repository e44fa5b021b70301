"""Masks judged like boxes: by mmdet's metric, and by trying everything."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mmrobust  # noqa: F401
from mmdet.evaluation import CocoMetric
from mmdet.evaluation.metrics import coco_metric
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmrobust.analysis import (
    Detections,
    GroundTruth,
    Masks,
    coco_ap,
    combine,
    count_errors,
    image_score,
    match_detections,
    mean_ap,
    worst_case_map,
)
from mmrobust.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from made_up import SIDE, dataset, one, with_masks

CLASSES = 3
NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def sample_of(found, pixels, **more):
    sample = DetDataSample(
        metainfo=dict(img_id=found.img_id, ori_shape=(SIDE, SIDE)),
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.zeros(len(found), 4),  # as SOLO leaves them
        scores=torch.from_numpy(found.scores),
        labels=torch.from_numpy(found.labels),
        masks=torch.from_numpy(pixels),
        **more,
    )
    return sample


def made(seed, num_images, num_attacks=1, **options):
    """Ground truth by masks, its infos, and samples and detections of each attack."""
    truths, attacks = dataset(seed, num_images, CLASSES, num_attacks, **options)
    infos, pixels = with_masks(np.random.default_rng(seed), truths, attacks)
    real = [GroundTruth.from_data_info(info, 'segm') for info in infos]
    samples = [
        [sample_of(*each) for each in zip(found, mine, strict=True)]
        for found, mine in zip(attacks, pixels, strict=True)
    ]
    read = [[Detections.from_sample(each, 'segm') for each in mine] for mine in samples]
    return real, infos, samples, read


def annotation_file(path, infos):
    """What COCO's file of the same images would be, read by pycocotools alone."""
    annotations = []
    for info in infos:
        for each in info['instances']:
            x1, y1, x2, y2 = each['bbox']
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=info['img_id'],
                    category_id=each['bbox_label'],
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    iscrowd=each['ignore_flag'],
                    segmentation=each['mask'],
                )
            )
    images = [dict(id=i['img_id'], height=SIDE, width=SIDE) for i in infos]
    categories = [dict(id=k, name=str(k)) for k in range(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(content))
    coco = COCO(str(path))
    for each in annotations:
        each['area'] = float(coco_mask.area(coco.annToRLE(each)))
    path.write_text(json.dumps(content))
    return COCO(str(path))


@pytest.mark.parametrize('seed', range(3))
def test_the_summary_equals_mmdets_metric(seed, tmp_path, monkeypatch):
    truths, infos, (samples,), (found,) = made(seed, 10, strength=0)
    assert any(not len(real) for real in truths)
    assert any(real.ignore.any() for real in truths)
    coco = annotation_file(tmp_path / 'a.json', infos)
    seen = []

    class Recording(coco_metric.COCOeval):
        def summarize(self):
            super().summarize()
            seen.append(self)

    monkeypatch.setattr(coco_metric, 'COCOeval', Recording)
    metric = CocoMetric(ann_file=str(tmp_path / 'a.json'), metric='segm')
    metric.dataset_meta = dict(classes=[str(k) for k in range(CLASSES)])
    metric.process({}, [sample.to_dict() for sample in samples])
    metric.evaluate(len(samples))
    (theirs,) = seen
    summary = coco_ap(truths, found, CLASSES, 'segm')
    for name, value in zip(NAMES, theirs.stats, strict=False):
        expected = value if value > -1 else math.nan
        assert summary.metrics[name] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    for label in range(CLASSES):
        values = theirs.eval['precision'][:, :, label, 0, -1]
        assert summary.per_class[label] == pytest.approx(values.mean(), abs=1e-12)
    assert 0.05 < summary.metrics['mAP'] < 0.9
    table = match_detections(truths, found, CLASSES, iou_type='segm')
    assert mean_ap(table) == pytest.approx(summary.metrics['mAP'], abs=1e-9)
    # Boxes around the same masks are judged otherwise.
    boxes = mean_ap(match_detections(truths, found, CLASSES))
    assert abs(boxes - summary.metrics['mAP']) > 1e-3
    from_file = [
        GroundTruth.from_coco(coco, info['img_id'], range(CLASSES), 'segm')
        for info in infos
    ]
    again = coco_ap(from_file, found, CLASSES, 'segm').metrics
    assert again == pytest.approx(summary.metrics, abs=1e-12, nan_ok=True)


def test_the_worst_case_is_between_the_optimum_and_the_best_member():
    """By all assignments of small sets; and never above a member of larger ones."""
    optimal = runs = 0
    for seed in range(6):
        truths, _, _, attacks = made(seed, 4, 3)
        tables = [
            match_detections(truths, a, CLASSES, iou_type='segm') for a in attacks
        ]
        result = worst_case_map(tables, seed=seed, tolerance=0)
        choices = map(np.array, itertools.product(range(3), repeat=4))
        lowest = min(mean_ap(combine(tables, choice)) for choice in choices)
        if np.isnan(lowest):  # no object was drawn
            continue
        runs += 1
        assert lowest - 1e-12 <= result.mean_ap <= result.single.min()
        optimal += result.mean_ap <= lowest + 1e-12
        by_id = [{each.img_id: each for each in found} for found in attacks]
        ids = tables[0].img_ids
        chosen = [by_id[a][i] for a, i in zip(result.assignment, ids, strict=True)]
        expected = coco_ap(truths, chosen, CLASSES, 'segm').metrics['mAP']
        assert result.mean_ap == pytest.approx(expected, abs=1e-9)
    assert optimal > runs / 2 > 1


def square(x, y, side):
    """A square of pixels, on an image of 20 x 20."""
    pixels = np.zeros((1, 20, 20), bool)
    pixels[0, y : y + side, x : x + side] = True
    return pixels


def image(objects, found):
    """Ground truth and detections of (pixels, class) and (pixels, class, score)."""

    def columns(rows, *kinds):
        parts = [np.array(c) for c in zip(*((r[1:]) for r in rows), strict=True)]
        parts = parts or [np.zeros(0, kind) for kind in kinds]
        pixels = [row[0] for row in rows] or [np.zeros((0, 20, 20))]
        masks = Masks.from_pixels(np.concatenate(pixels))
        return masks, parts

    masks, (labels,) = columns(objects, int)
    none = np.zeros(len(labels), bool)
    truth = GroundTruth(1, masks.boxes(), labels, none, masks.areas(), 20, 20, masks)
    masks, (labels, scores) = columns(found, int, float)
    return truth, Detections(1, masks.boxes(), scores, labels, masks)


FRAME = square(2, 2, 12)
FRAME[0, 4:12, 4:12] = False  # of 80 pixels, in whose box of 144 lies a hole


@pytest.mark.parametrize(
    ('found', 'kinds', 'score'),
    [
        # The box of the object, filled: an IoU of 80 / 144.
        ([(square(2, 2, 12), 0, 1.0)], dict(correct=1), 0.2),
        ([(FRAME, 0, 0.7)], dict(correct=1), 0.7),
        ([(FRAME, 1, 1.0)], dict(misclassified=1), 0.0),
        # All of it in the hole, where boxes have an IoU of 0.44.
        ([(square(4, 4, 8), 0, 1.0)], dict(hallucinated=1), 0.0),
        # A part of it: 36 - 16 of 80 + 16 pixels.
        ([(square(2, 2, 6), 0, 1.0)], dict(mislocalised=1), 0.0),
    ],
)
def test_kinds_of_errors_and_the_score_of_an_image_by_hand(found, kinds, score):
    truth, detections = image([(FRAME, 0)], found)
    counts = count_errors([truth], [detections], 2, iou_type='segm')
    for kind in ('correct', 'misclassified', 'mislocalised', 'hallucinated'):
        assert getattr(counts, kind) == kinds.get(kind, 0)
    value = image_score(truth, detections, 2, 'segm')
    assert value == pytest.approx(score, abs=1e-6)


def test_masks_keep_their_pixels_areas_and_boxes():
    rng = np.random.default_rng(0)
    pixels = rng.random((5, 7, 9)) < [[[0.5]], [[0.1]], [[0.9]], [[0.0]], [[1.0]]]
    masks = Masks.from_pixels(pixels)
    decoded = coco_mask.decode(masks.rles()).transpose(2, 0, 1)
    assert np.array_equal(decoded, pixels)
    assert masks.areas().tolist() == pixels.sum((1, 2)).tolist()
    assert masks.boxes()[3].tolist() == [0, 0, 0, 0]
    assert masks.boxes()[4].tolist() == [0, 0, 9, 7]
    objects = masks[np.array([True, False, True, False, False])]
    crowd = np.array([False, True])
    for row, mine in zip(masks.ious(objects, crowd), pixels, strict=True):
        for value, k, theirs in zip(row, crowd, pixels[[0, 2]], strict=True):
            both, union = (mine & theirs).sum(), (mine | theirs).sum()
            expected = both / max(mine.sum() if k else union, 1)
            assert value == pytest.approx(expected, abs=1e-12)
    assert len(Masks.from_pixels(pixels[:0])) == 0
    assert Masks.from_pixels(pixels[:0]).boxes().shape == (0, 4)


def test_masks_may_have_scores_of_their_own_and_be_run_lengths():
    """Mask Scoring R-CNN has both, of which mmdet's metric takes the masks'."""
    found = one([[0, 0, 9, 9], [1, 1, 5, 5]], [1, 0], [0.5, 0.25])
    pixels = np.zeros((2, SIDE, SIDE), bool)
    pixels[0, :9, :9] = pixels[1, 1:5, 1:5] = True
    sample = sample_of(found, pixels, mask_scores=torch.tensor([0.125, 1.0]))
    read = Detections.from_sample(sample, 'segm')
    assert read.scores.tolist() == [0.125, 1.0]
    assert read.bboxes.tolist() == [[0, 0, 9, 9], [1, 1, 5, 5]]
    assert len(read.above(0.5)) == len(read.above(0.5).masks) == 1
    sample = dict(
        img_id=1,
        pred_instances=dict(
            **{k: sample.pred_instances[k] for k in ('scores', 'labels')},
            masks=coco_mask.encode(
                np.asfortranarray(pixels.transpose(1, 2, 0), np.uint8)
            ),
        ),
    )
    again = Detections.from_sample(sample, 'segm')
    assert again.scores.tolist() == [0.5, 0.25]
    assert again.masks.rles() == read.masks.rles()


def test_masks_that_cannot_be_compared_are_refused():
    truth, found = image([(FRAME, 0)], [(FRAME, 0, 1.0)])
    bare = Detections(1, found.bboxes, found.scores, found.labels)
    for function in (coco_ap, match_detections, count_errors):
        with pytest.raises(ConfigError, match='no masks of image 1'):
            function([truth], [bare], 1, iou_type='segm')
    small = Masks.from_pixels(np.ones((1, 10, 20)))
    small = Detections(1, found.bboxes, found.scores, found.labels, small)
    with pytest.raises(ConfigError, match='are of 10 x 20 pixels'):
        match_detections([truth], [small], 1, iou_type='segm')
    two = Masks.from_pixels(np.ones((2, 20, 20)))
    with pytest.raises(ConfigError, match='2 masks and 1 labels'):
        Detections(1, found.bboxes, found.scores, found.labels, two)
    info = dict(img_id=7, height=20, width=20)
    instances = [
        dict(bbox=[0, 0, 1, 1], bbox_label=0, mask=mask) for mask in ([], None)
    ]
    with pytest.raises(ConfigError, match='2 of the 2 objects of image 7'):
        GroundTruth.from_data_info({**info, 'instances': instances}, 'segm')
    for mask in ([[1, 2]], 'x', dict(size=[20, 20]), dict(size=[5, 20], counts=b'x')):
        instances = [dict(bbox=[0, 0, 1, 1], bbox_label=0, mask=mask)]
        with pytest.raises(ConfigError, match='mask'):
            GroundTruth.from_data_info({**info, 'instances': instances}, 'segm')
    with pytest.raises(ConfigError, match='predicts no masks'):
        Detections.from_sample(dict(img_id=1, pred_instances={}), 'segm')
