"""Checkpointed activations change memory, and neither training nor attacks."""

import sys
import warnings
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import ModuleType

import pytest
import tiny
import torch
from mmrobust.attacks import PGD
from mmrobust.batch import float_images
from mmrobust.frame import attack_samples
from benchmarks.timing import peak_bytes
from mmrobust.training import FreeAdversary, PGDAdversary
from mmrobust.objective import LossOracle, Objective, loss_mode
from torch import nn
from torch.utils import checkpoint
from updates import make_batch, make_model, sgd, train

CPU = torch.device('cpu')
SIZES = [(128, 128), (96, 128)]


def resnet():
    """As mmdet's configs have it: a frozen stem, and statistics that stay."""
    model = tiny.fcos()
    model['backbone'].update(depth=50, base_channels=8, frozen_stages=1, norm_eval=True)
    model['neck']['in_channels'] = [64, 128, 256]
    return model


def convnext():
    model = tiny.fcos()
    model['backbone'] = dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[3, 3, 3, 1], channels=[8, 16, 32, 64]),
        out_indices=[1, 2, 3],
        gap_before_final_norm=False,
        drop_path_rate=0.0,
    )
    model['neck']['in_channels'] = [16, 32, 64]
    return model


BACKBONES = {'resnet': resnet, 'convnext': convnext}


def pair_of(backbone):
    """The same detector without and with checkpoints in its backbone."""
    config = BACKBONES[backbone]()
    plain = make_model(deepcopy(config))
    config['backbone']['with_cp'] = True
    saving = make_model(config)
    saving.load_state_dict(plain.state_dict())
    return plain, saving


METHODS = {
    'free': lambda: FreeAdversary(eps=4, replays=2, carry='run'),
    'free, own objective': lambda: FreeAdversary(
        eps=4, replays=2, carry='run', objective='cls+reg'
    ),
    'pgd': lambda: PGDAdversary(eps=4, num_steps=2),
}


@pytest.mark.parametrize(
    ('backbone', 'method'),
    [
        ('resnet', 'free'),
        ('resnet', 'free, own objective'),
        ('resnet', 'pgd'),
        ('convnext', 'free, own objective'),
    ],
)
def test_checkpoints_change_memory_and_not_the_training(backbone, method):
    pair = plain, saving = pair_of(backbone)
    batch = make_batch(SIZES, 0)
    start = deepcopy(plain.state_dict())
    peaks, deltas = [], []
    for model in pair:
        adversary, wrapper = METHODS[method](), sgd(model)
        torch.manual_seed(1)
        deltas.append(train(adversary, model, [batch], wrapper))
        model.zero_grad(set_to_none=True)
        state = deepcopy(model.state_dict())
        update = partial(adversary.train_step, model, wrapper, batch, 1)
        peaks.append(peak_bytes(update, CPU))
        model.load_state_dict(state)
    # Up to rounding: gradients of a weight may be added up in another order.
    theirs = saving.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-6), name
    assert any(not torch.equal(start[k], v) for k, v in plain.state_dict().items())
    for own, other in zip(*deltas, strict=True):
        for a, b in zip(own, other, strict=True):
            # A gradient that is zero but for rounding may have either sign.
            assert (a != b).float().mean() < 1e-3
    assert peaks[1] < 0.9 * peaks[0]


@pytest.mark.parametrize('backbone', BACKBONES)
def test_checkpoints_change_memory_and_not_the_attack(backbone):
    batch = make_batch(SIZES[:1], 0)
    samples = attack_samples(batch['data_samples'], 'cpu', 'input')
    attack = PGD(eps=4, num_steps=2)

    def perturb(model):
        with loss_mode(model):
            oracle = LossOracle(model, batch, samples, Objective())
            generator = torch.Generator().manual_seed(0)
            return attack.perturb(oracle, float_images(batch, 'cpu'), generator)

    found, peaks = [], []
    for model in pair_of(backbone):
        found.append(perturb(model)[0])
        peaks.append(peak_bytes(partial(perturb, model), CPU))
        # The weights were frozen, also in what a checkpoint computes again.
        assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(*found)
    assert not torch.equal(found[0], batch['inputs'][0].float())
    assert peaks[1] < 0.9 * peaks[0]


def test_the_checkpoints_of_others_stay_what_they_were():
    """Outside of attacks, torch's default and its warning."""
    before = checkpoint.checkpoint
    with loss_mode(nn.Linear(1, 1)):
        assert checkpoint.checkpoint is not before
    assert checkpoint.checkpoint is before
    leaf = torch.ones(1, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out = checkpoint.checkpoint(torch.exp, leaf, use_reentrant=True)
    with pytest.raises(RuntimeError, match='use_reentrant'):
        torch.autograd.grad(out, leaf)


def test_fairscales_checkpoints_are_off_in_attacks(monkeypatch):
    """They refuse gradients of inputs alone, as CO-DETR's ``with_cp`` would."""
    fairscale = ModuleType('fairscale.nn.checkpoint.checkpoint_activations')
    fairscale.off = False

    @contextmanager
    def disable_checkpointing():
        fairscale.off = True
        yield
        fairscale.off = False

    fairscale.disable_checkpointing = disable_checkpointing
    monkeypatch.setitem(sys.modules, fairscale.__name__, fairscale)

    class Block(nn.Linear):
        def forward(self, x):
            if fairscale.off:
                return super().forward(x)
            return checkpoint.checkpoint(super().forward, x, use_reentrant=True)

    model, x = Block(3, 1), torch.ones(1, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r'compatible with .grad'):
        torch.autograd.grad(model(x).sum(), x)
    with loss_mode(model):
        (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(grad, model.weight)
    assert not fairscale.off
