"""The COCO summary equals mmdet's own metric, and the fast mAP equals both."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mmrobust  # noqa: F401
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.evaluation.metrics import coco_metric
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmrobust.analysis import (
    Detections,
    FastAP,
    GroundTruth,
    coco_ap,
    match_detections,
    mean_ap,
)
from mmrobust.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from made_up import dataset, one

CLASSES = 4
NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def sample_of(found, real, instances=None):
    sample = DetDataSample(
        metainfo=dict(img_id=real.img_id, ori_shape=(real.height, real.width))
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.from_numpy(found.bboxes),
        scores=torch.from_numpy(found.scores),
        labels=torch.from_numpy(found.labels),
    )
    result = sample.to_dict()
    if instances is not None:
        result['instances'] = instances
    return result


@pytest.fixture
def mmdet_summary(monkeypatch):
    """mmdet's CocoMetric, with the numbers it has before it rounds them."""

    def run(samples, classes, ann_file=None):
        seen = []

        class Recording(coco_metric.COCOeval):
            def summarize(self):
                super().summarize()
                seen.append(self)

        monkeypatch.setattr(coco_metric, 'COCOeval', Recording)
        metric = CocoMetric(ann_file=ann_file)
        metric.dataset_meta = dict(classes=classes)
        metric.process({}, samples)
        rounded = metric.evaluate(len(samples))
        stats = dict(zip(NAMES, seen[0].stats[:6], strict=True))
        for name in NAMES:  # the right figures were recorded
            assert rounded[f'coco/bbox_{name}'] == pytest.approx(stats[name], abs=6e-4)
        return stats, seen[0].eval['precision']

    return run


def assert_equal(summary, stats):
    for name in NAMES:
        expected = stats[name] if stats[name] > -1 else math.nan
        assert summary.metrics[name] == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize('seed', range(4))
def test_equals_mmdets_metric_on_ground_truth_in_memory(seed, mmdet_summary):
    truths, (found,) = dataset(seed, 12, CLASSES)
    assert any(not len(real) for real in truths)
    assert any(real.ignore.any() for real in truths)
    infos, samples = [], []
    for real, each in zip(truths, found, strict=True):
        instances = [
            dict(bbox=box.tolist(), bbox_label=int(label), ignore_flag=int(ignore))
            for box, label, ignore in zip(
                real.bboxes, real.labels, real.ignore, strict=True
            )
        ]
        infos.append(
            dict(img_id=real.img_id, height=400, width=400, instances=instances)
        )
        samples.append(sample_of(each, real, instances))
    stats, precision = mmdet_summary(samples, [str(k) for k in range(CLASSES)])
    read = [GroundTruth.from_data_info(info) for info in infos]
    detections = [Detections.from_sample(sample) for sample in samples]
    summary = coco_ap(read, detections[::-1], CLASSES)
    assert_equal(summary, stats)
    assert 0.02 < stats['mAP'] < 0.9
    for label in range(CLASSES):
        values = precision[:, :, label, 0, -1]
        assert summary.per_class[label] == pytest.approx(values.mean(), abs=1e-9)


def test_equals_mmdets_metric_on_an_annotation_file(coco, mmdet_summary):
    # The file's classes in another order, its ids and areas, an image without objects.
    ann_file = str(coco / 'annotations.json')
    data = CocoDataset(
        ann_file=ann_file,
        data_prefix=dict(img=str(coco / 'images')),
        metainfo=dict(classes=('stripe', 'disc', 'square')),
        test_mode=True,
    )
    assert len(data) == 6
    infos = [data.get_data_info(index) for index in range(6)]
    truths = [GroundTruth.from_data_info(info) for info in infos]
    rng = np.random.default_rng(0)
    detections = []
    for real in truths:
        box = np.concatenate([real.bboxes, [[5, 5, 40, 30]]])
        box = box + rng.normal(0, 3, box.shape)
        labels = np.concatenate([real.labels, [1]])
        detections.append(Detections(real.img_id, box, rng.random(len(box)), labels))
    samples = [sample_of(*each) for each in zip(detections, truths, strict=True)]
    stats, _ = mmdet_summary(samples, ('stripe', 'disc', 'square'), ann_file)
    assert_equal(coco_ap(truths, detections, 3), stats)
    metric = CocoMetric(ann_file=ann_file)
    from_file = [
        GroundTruth.from_coco(metric._coco_api, info['img_id'], data.cat_ids)
        for info in infos
    ]
    assert_equal(coco_ap(from_file, detections, 3), stats)


@pytest.mark.parametrize('seed', range(12))
def test_the_fast_map_equals_pycocotools(seed):
    # Boxes inside out and more than 100 detections of a class in an image as well.
    truths, (found,) = dataset(seed, 15, CLASSES, extra=400 if seed > 9 else 8)
    if seed % 2:
        first = found[0]
        box = np.concatenate([first.bboxes, [[90, 90, 30, 120]]])
        found[0] = Detections(
            first.img_id, box, np.append(first.scores, 1), np.append(first.labels, 0)
        )
    summary = coco_ap(truths, found, CLASSES)
    table = match_detections(truths, found, CLASSES)
    assert mean_ap(table) == pytest.approx(summary.metrics['mAP'], abs=1e-9)
    if seed <= 9:
        per_class = FastAP(table).per_class()
        np.testing.assert_allclose(per_class, summary.per_class, atol=1e-9)


@pytest.mark.parametrize('seed', range(6))
def test_weights_equal_copies_of_the_images(seed):
    truths, (found,) = dataset(seed, 8, CLASSES)
    # Equal scores between images, not within one, where copies go one by one.
    found = [
        Detections(e.img_id, e.bboxes, e.scores + 1e-4 * np.arange(len(e)), e.labels)
        for e in found
    ]
    fast = FastAP(match_detections(truths, found, CLASSES))
    order = np.argsort([real.img_id for real in truths])
    counts = np.random.default_rng(seed).integers(0, 4, 8)
    copies, copied = [], []
    for count, index in zip(counts, order, strict=True):
        for copy in range(count):
            real, each = truths[index], found[index]
            new_id = 10 * real.img_id + copy
            copies.append(GroundTruth(**{**vars(real), 'img_id': new_id}))
            copied.append(Detections(**{**vars(each), 'img_id': new_id}))
    expected = coco_ap(copies, copied, CLASSES)
    assert fast.mean(counts) == pytest.approx(expected.metrics['mAP'], abs=1e-9)
    np.testing.assert_allclose(fast.per_class(counts), expected.per_class, atol=1e-9)


def test_without_detections_and_without_objects():
    real = one([[0, 0, 40, 40]], [1])
    nothing = one([], [], [])
    summary = coco_ap([real], [nothing], 2)
    assert summary.metrics['mAP'] == 0
    assert summary.metrics['mAP_m'] == 0  # 1600 square pixels
    assert math.isnan(summary.metrics['mAP_s'])
    assert math.isnan(summary.per_class[0])
    assert summary.per_class[1] == 0
    assert mean_ap(match_detections([real], [nothing], 2)) == 0
    empty = coco_ap([one([], [])], [one([[0, 0, 9, 9]], [0], [0.9])], 2)
    assert all(math.isnan(value) for value in empty.metrics.values())
    table = match_detections([one([], [])], [one([[0, 0, 9, 9]], [0], [0.9])], 2)
    assert math.isnan(mean_ap(table))


def test_conversion_of_half_precision_and_box_types():
    found = InstanceData(
        bboxes=torch.tensor([[1.0, 2, 3, 4]], dtype=torch.bfloat16),
        scores=torch.tensor([0.5], dtype=torch.float16, requires_grad=True),
        labels=torch.tensor([2]),
    )
    sample = DetDataSample(metainfo=dict(img_id='a'))
    sample.pred_instances = found
    read = Detections.from_sample(sample)
    assert read.img_id == 'a'
    np.testing.assert_array_equal(read.bboxes, [[1, 2, 3, 4]])
    assert read.scores.tolist() == [0.5]
    assert read.labels.tolist() == [2]


@pytest.mark.parametrize(
    ('truths', 'found', 'message'),
    [
        ([one([], [])], [one([], [], [], img_id=2)], 'different images'),
        ([one([], []), one([], [])], [one([], [], [])], 'twice'),
        ([], [], 'no image'),
        ([one([[0, 0, 1, 1]], [2])], [one([], [], [])], 'label outside 0 to 1'),
    ],
)
def test_what_does_not_belong_together_is_refused(truths, found, message):
    for function in (coco_ap, match_detections):
        with pytest.raises(ConfigError, match=message):
            function(truths, found, 2)


def test_broken_arrays_are_refused():
    with pytest.raises(ConfigError, match='not finite'):
        one([[0, 0, np.nan, 1]], [0], [0.5])
    with pytest.raises(ConfigError, match='do not belong together'):
        one([[0, 0, 1, 1]], [0], [0.5, 0.6])
    with pytest.raises(ConfigError, match='shape'):
        Detections(1, np.zeros((2, 5)), np.zeros(2), np.zeros(2))
    with pytest.raises(ConfigError, match='different lengths'):
        one([[0, 0, 1, 1]], [0], ignore=[True, False])
