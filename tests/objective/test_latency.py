"""The objective latency and the counts it is about: by hand, by a second way."""

import pytest
import stored
import tiny
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import InstanceData

from mmrobust.attacks import PGD
from mmrobust.batch import float_images, with_images
from mmrobust.errors import ConfigError
from mmrobust.frame import attack_samples
from mmrobust.objective import (
    Objective,
    classes_at_once,
    counting,
    loss_mode,
    make_oracle,
    suppressing,
    threshold_of,
)
from mmrobust.objective.latency import soft_count


def test_soft_count_by_hand():
    """At the threshold a half, at even odds 1 - threshold, and 1 for what is sure."""
    scores = torch.tensor([0.1, 0.5, 1.0, 0.0], requires_grad=True)
    value = soft_count(scores, 0.1)
    assert float(value) == pytest.approx(0.5 + 0.9 + 1 + 0, abs=1e-6)
    value.backward()
    # s / (s + o (1 - s)) with odds o = 1 / 9 has the slope o / (s + o (1 - s))**2.
    odds = 1 / 9
    slopes = [odds / (s + odds * (1 - s)) ** 2 for s in (0.1, 0.5, 1.0, 0.0)]
    assert scores.grad.tolist() == pytest.approx(slopes, rel=1e-5)


@pytest.mark.parametrize(
    ('threshold', 'classes', 'expected'),
    [(0.05, 80, 19), (0.05, 10, 10), (0.3, 80, 3), (0.5, 80, 1)],
)
def test_a_softmax_is_above_a_threshold_for_so_many_classes(
    threshold, classes, expected
):
    assert classes_at_once(threshold, classes) == expected
    assert expected * threshold < 1


def _batch(coco, index=1):
    data = DATASETS.build(tiny.dataset(coco, True, scale=(144, 108)))
    batch = pseudo_collate([data[index]])
    return batch, attack_samples(batch['data_samples'], 'cpu', 'original')


def _count(model, batch, images, all_of_them=False):
    with torch.no_grad(), counting(model, all_of_them):
        (output,) = model.test_step(with_images(batch, images))
    return len(output.pred_instances)


def _class_scores(model, batch, images):
    """Of each level of FCOS, before they are multiplied by the centerness."""
    data = model.data_preprocessor(with_images(batch, images), False)
    with torch.no_grad():
        levels = model(data['inputs'], mode='tensor')[0]
    return [level.sigmoid().flatten() for level in levels]


def test_it_counts_what_a_head_compares_with_its_threshold(coco):
    model = stored.detector('fcos')
    model.bbox_head.test_cfg.nms_pre = 7
    batch, samples = _batch(coco)
    images = float_images(batch, 'cpu')
    levels = _class_scores(model, batch, images)
    passed = [int((level > 0.01).sum()) for level in levels]
    assert max(passed) > 7 > min(passed)
    assert _count(model, batch, images) == sum(min(7, each) for each in passed)
    assert _count(model, batch, images, True) == 7 * len(levels)
    with loss_mode(model):
        oracle = make_oracle(model, batch, samples, Objective('latency'))
        (value,) = oracle.value(images)
    highest = [level.topk(7).values.double() for level in levels]
    expected = sum(float(soft_count(each, 0.01)) for each in highest)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_of_regions_as_many_count_as_may_be_proposed(coco):
    """50 proposals of 3 classes, whatever the proposals overlap."""
    model = stored.detector('faster_rcnn')
    batch, samples = _batch(coco)
    images = float_images(batch, 'cpu')
    assert _count(model, batch, images, True) == 50 * 3
    seen = []
    head = model.roi_head.bbox_head.register_forward_hook(
        lambda module, given, found: seen.append(found[0].softmax(1)[:, :3])
    )
    assert _count(model, batch, images) == int((seen[0] > 0.01).sum())
    with loss_mode(model):
        oracle = make_oracle(model, batch, samples, Objective('latency'))
        (value,) = oracle.value(images)
    head.remove()
    expected = float(soft_count(seen[-1], 0.01))
    assert float(value) == pytest.approx(expected, rel=1e-5)


class Scores(BaseModel):
    """A prediction for every row of a matrix: the sigmoid of a sum of pixels."""

    def __init__(self, rows, offsets):
        super().__init__(BaseDataPreprocessor(non_blocking=False))
        self.rows, self.offsets = rows, offsets
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.test_cfg = {'nms': {}, 'score_thr': 0.05}

    def logits(self, pixels):
        return self.weight * (self.rows @ (pixels - 128)) / 8 - self.offsets

    def forward(self, inputs, data_samples, mode):
        scores = self.logits(inputs[0].flatten()).sigmoid()
        kept = scores[scores > self.test_cfg['score_thr']]
        data_samples[0].pred_instances = InstanceData(scores=kept)
        return data_samples


def test_no_other_image_of_the_ball_raises_more():
    """Predictions that want different pixels: by all images of three values each."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 6, generator=draws)
    model = Scores(rows, 3 + 4 * torch.rand(12, generator=draws))
    image = torch.full((6, 1, 1), 128.0)
    others = torch.cartesian_prod(*[torch.tensor([120.0, 128.0, 136.0])] * 6)
    with torch.no_grad():
        counts = [int((model.logits(o).sigmoid() > 0.05).sum()) for o in others]
    sample = DetDataSample(gt_instances=tiny.instances([], []))
    batch = dict(inputs=[image], data_samples=[sample])
    attack = PGD(eps=8, num_steps=20, restarts=3, objective='latency')
    with loss_mode(model):
        oracle = make_oracle(model, batch, [sample], attack.objective)
        (found,) = attack.perturb(oracle, [image], torch.Generator().manual_seed(0))
    raised = int((model.logits(found.flatten()).sigmoid() > 0.05).sum())
    assert raised >= max(counts) > counts[len(counts) // 2]


def test_an_attack_raises_the_count(coco):
    model = stored.detector('retinanet')
    for head in suppressing(model):
        head.test_cfg.score_thr = 0.3
    batch, samples = _batch(coco)
    images = float_images(batch, 'cpu')
    with loss_mode(model):
        oracle = make_oracle(model, batch, samples, Objective('latency'))
        found = PGD(eps=16, num_steps=5, objective='latency').perturb(
            oracle, images, torch.Generator().manual_seed(0)
        )
    before, after = (_count(model, batch, each) for each in (images, found))
    assert before < after <= _count(model, batch, images, True)


def test_what_compares_no_boxes_is_refused(coco):
    """As DETR, whose test_cfg knows no nms."""
    model = stored.detector('fcos')
    model.test_cfg.score_thr = 0
    with pytest.raises(ConfigError, match='score_thr=0 in the test_cfg of FCOS lets'):
        threshold_of(model)
    for head in suppressing(model):
        head.test_cfg.pop('nms', None)  # the detector and its head share it
    batch, samples = _batch(coco)
    with pytest.raises(ConfigError, match='FCOS suppresses no boxes'):
        make_oracle(model, batch, samples, Objective('latency'))
