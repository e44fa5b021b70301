"""Models of other projects: their own way to forward(), their own keys, a teacher."""

from copy import deepcopy

import pytest
import tiny
import torch
from mmdet.models import FCOS, DetDataPreprocessor
from mmdet.registry import DATASETS, MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import nn

from mmrobust.batch import float_images, split_batch
from mmrobust.errors import doing
from mmrobust.frame import attack_samples
from mmrobust.objective import LossOracle, Objective, loss_mode


class DepthPreprocessor(DetDataPreprocessor):
    """Hands over a depth of each image, in a batch with one key of its own."""

    def forward(self, data, training=False):
        known = super().forward(data, training)
        return {'batch': {**known, 'depth': torch.stack(list(data['depth']))}}


class DepthFCOS(FCOS):
    """Overrides mmengine's way from data to forward()."""

    def _run_forward(self, data, mode):
        batch = data['batch']
        inputs = batch['inputs'] + batch['depth'][:, None, None, None]
        return self(inputs, batch['data_samples'], mode=mode)


class Distilled(FCOS):
    """A frozen teacher, into whose answer the student's code writes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.teacher = nn.Conv2d(3, 1, 1).requires_grad_(False)

    def loss(self, inputs, samples):
        taught = self.teacher(inputs).sigmoid()
        taught += 1
        losses = super().loss(inputs, samples)
        return {**losses, 'loss_taught': (taught - inputs.mean(1)).abs().mean()}


def build(kind):
    config = deepcopy(tiny.fcos())
    config.pop('type')
    if kind is DepthFCOS:
        config['data_preprocessor']['type'] = DepthPreprocessor
    torch.manual_seed(0)
    return tiny.filled(MODELS.build(ConfigDict(type=kind, **config)))


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
    coco = tiny.make_coco(tmp_path_factory.mktemp('coco'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(tiny.dataset(coco, True, scale=(96, 72)))
        found = pseudo_collate([dataset[i] for i in range(2)])
    samples = attack_samples(found['data_samples'], 'cpu', 'original')
    return {**found, 'depth': [torch.tensor(0.5), torch.tensor(-2.0)]}, samples


def test_an_own_way_to_forward_and_an_own_key(batch):
    """Each image keeps its own depth, and the loss is the model's own."""
    data, samples = batch
    model = build(DepthFCOS)
    with loss_mode(model):
        oracle = LossOracle(model, data, samples, Objective())
        values, grads = oracle.value_and_grad(float_images(data, 'cpu'))
        for part, sample, value in zip(split_batch(data), samples, values, strict=True):
            ready = model.data_preprocessor({**part, 'data_samples': [sample]})
            losses = model._run_forward(ready, mode='loss')
            assert float(value) == pytest.approx(float(model.parse_losses(losses)[0]))
    assert all(grad.abs().sum() > 0 for grad in grads)
    assert (oracle.forwards, oracle.backwards) == (2, 2)


def test_a_teacher_that_is_written_into_is_told_of(batch):
    """Its error is torch's, behind what helps."""
    data, samples = batch
    model = build(Distilled)
    with loss_mode(model):
        oracle = LossOracle(model, data, samples, Objective())
        assert oracle.value(float_images(data, 'cpu')).isfinite().all()
        with pytest.raises(RuntimeError) as caught, doing('attacking image 1'):
            oracle.value_and_grad(float_images(data, 'cpu'))
    (note,) = caught.value.__notes__
    assert note.startswith('while attacking image 1 (losses are differentiated')
    assert 'torch.no_grad()' in note
