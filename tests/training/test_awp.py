"""AWP: the perturbed update by hand, and weights that come back as they were."""

from copy import deepcopy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapper
from torch import nn
from updates import epochs, make_batch, make_model, pgd, sgd

from mmrobust.errors import ConfigError
from mmrobust.training import FreeAdversary, PGDAdversary


class LeastSquares(BaseModel):
    """Half of the squared length of ``weight @ image + bias``."""

    def __init__(self, weight):
        super().__init__(BaseDataPreprocessor(non_blocking=False))
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.seen = []

    def forward(self, inputs, data_samples, mode):
        self.seen.append(self.weight.detach().clone())
        found = self.weight @ inputs[0].flatten() + self.bias
        return {'loss': found.square().sum() / 2}


WEIGHT = [[0.02, 0.01, -0.03], [0.01, 0.04, 0.02]]


@pytest.mark.parametrize('kind', [FreeAdversary, PGDAdversary])
@pytest.mark.parametrize('awp_gamma', [0.005, 0.5])
def test_the_update_by_hand(kind, awp_gamma):
    """The gradient is ``(weight @ x + bias) x``; eps 0 leaves the image clean."""
    model = LeastSquares(WEIGHT)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 1e-5, weight_decay=0.1))
    x = torch.tensor([10.0, 20, 30])
    batch = dict(
        inputs=[x.view(3, 1, 1).to(torch.uint8)], data_samples=[DetDataSample()]
    )
    weight, bias = torch.tensor(WEIGHT), torch.tensor([1.0, -1.0])
    grad = torch.outer(weight @ x + bias, x)
    worse = weight + awp_gamma * weight.norm() * grad / grad.norm()
    there = worse @ x + bias
    expected = weight - 1e-5 * (torch.outer(there, x) + 0.1 * weight)
    settings = dict(replays=1) if kind is FreeAdversary else dict(num_steps=1)
    adversary = kind(eps=0, awp_gamma=awp_gamma, **settings)
    adversary.train_step(model, wrapper, batch, 0)
    assert torch.allclose(model.seen[-1], worse, rtol=1e-6)
    assert torch.allclose(model.weight.detach(), expected, rtol=1e-6)
    # One dimension is not perturbed, but learns where the others are.
    assert torch.allclose(model.bias.detach(), bias - 1e-5 * (there + 0.1 * bias))


@pytest.mark.parametrize('settings', [dict(), dict(objective='cls+reg')])
def test_it_leaves_no_trace_but_the_gradients(settings):
    """With a rate of 0 the weights are what they were, bit for bit."""
    model, batch = make_model(), make_batch([(64, 64)], 0)
    without = deepcopy(model)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    weights = {name: w.detach().clone() for name, w in model.named_parameters()}
    passes = []
    model.backbone.register_forward_pre_hook(lambda *_: passes.append(1))
    adversary = FreeAdversary(replays=1, awp_gamma=0.01, **settings)
    torch.manual_seed(3)
    adversary.train_step(model, wrapper, batch, 0)
    state = torch.get_rng_state()
    assert len(passes) == 2
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name]), name
    # BatchNorm's count: one update.
    (count,) = {
        int(m.num_batches_tracked)
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    }
    assert count == 1
    torch.manual_seed(3)
    FreeAdversary(replays=1).train_step(without, sgd(without), batch, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_finite_gradient_nothing_moves():
    model = LeastSquares([[float('inf'), 0.0, 0.0], [0.0, 0.0, 0.0]])
    wrapper, batch = sgd(model), dict(inputs=[torch.ones(3, 1, 1)], data_samples=[None])
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match='in the middle'):
        with FreeAdversary(awp_gamma=0.1).learning(model, wrapper, batch, 0):
            raise RuntimeError('in the middle')
    assert torch.equal(model.weight, before)
    assert 'step' not in vars(wrapper)


def test_trainings_that_cannot_have_it(build_runner):
    for value in (-0.1, 1, '0.1'):
        with pytest.raises(ConfigError, match='must be from 0 to below 1'):
            FreeAdversary(awp_gamma=value)
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.01),
        accumulative_counts=2,
    )
    runner = build_runner(
        train_cfg=epochs(1, pgd(awp_gamma=0.005)), optim_wrapper=wrapper
    )
    with pytest.raises(ConfigError, match='awp_gamma perturbs'):
        runner.train()


def test_checkpoints_tell_of_it():
    assert FreeAdversary(awp_gamma=0.005).describe()['awp_gamma'] == 0.005
    assert 'awp_gamma' not in FreeAdversary().describe()
