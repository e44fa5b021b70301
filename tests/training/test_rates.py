"""Rates are followed ahead of a training, and what goes astray is said."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from mmengine.config import Config
from mmengine.runner import Runner
from mmrobust.training import rates
from mmrobust.training.optim import Rates

PLAIN = Rates(1e-4, 1e-5)


def said(monkeypatch, schedulers, epochs=8, replays=4, known=PLAIN):
    """What a training of 26 batches per pass says of its rates."""
    texts = []
    monkeypatch.setattr(
        rates, 'print_log', lambda text, **_: texts.append(text.split(':')[0])
    )
    runner = SimpleNamespace(
        max_epochs=epochs,
        max_iters=26 * epochs * replays,
        train_dataloader=range(26 * replays),
        train_loop=SimpleNamespace(repeats_in_loader=True),
        optim_wrapper=SimpleNamespace(mmrobust_rates=known),
        cfg=Config(dict(param_scheduler=schedulers)),
    )
    rates.check_schedule(runner, replays)
    return texts


SHOWN = 'Learning rates of backbone and rest'
BROKEN = 'The schedule does not keep the learning rate of the backbone at 0.1 of the '
LATE = 'The learning rate rises until update'


@pytest.mark.parametrize(
    ('schedulers', 'expected'),
    [
        ([], [SHOWN]),
        ([dict(type='CosineAnnealingLR', end=8, eta_min_ratio=0.05)], [SHOWN]),
        ([dict(type='CosineAnnealingLR', end=8, eta_min=5e-6)], [SHOWN, BROKEN]),
        ([dict(type='PolyLR', end=8, eta_min=5e-6)], [SHOWN, BROKEN]),
        (
            [dict(type='mmrobust.RelativePolyLR', end=8, eta_min_ratio=0.05)],
            [SHOWN],
        ),
        ([dict(type='OneCycleLR', total_steps=8, eta_max=1e-4)], [SHOWN, BROKEN]),
        (
            [dict(type='mmrobust.RelativeOneCycleLR', total_steps=8, eta_max_ratio=1)],
            [SHOWN],
        ),
        ([dict(type='LinearLR', by_epoch=False, end=104)], [SHOWN]),
        ([dict(type='LinearLR', by_epoch=False, end=600)], [SHOWN, LATE]),
        ([dict(type='ReduceOnPlateauLR')], [SHOWN]),
    ],
)
def test_what_is_said(monkeypatch, schedulers, expected):
    found = said(monkeypatch, schedulers)
    assert len(found) == len(expected)
    assert all(text.startswith(e) for text, e in zip(found, expected, strict=True))


def test_few_passes(monkeypatch):
    assert said(monkeypatch, [], epochs=2)[0].startswith('The training makes 2 passes')
    assert said(monkeypatch, [], epochs=2, replays=1) == [SHOWN]
    assert said(monkeypatch, [], known=None) == []
    each = dict(type='OneCycleLR', total_steps=8, eta_max=[1e-4] * 7)
    assert said(monkeypatch, [each]) == []


def test_what_is_followed_is_what_happens(coco, tmp_path):
    """Update by update, against a real training's own optimizer."""
    cfg = tiny.runner_config(coco, tmp_path, tiny.fcos())
    cfg['optim_wrapper'] = dict(
        optimizer=dict(type='AdamW', lr=1e-3),
        constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    )
    cfg['param_scheduler'] = [
        dict(type='LinearLR', by_epoch=False, begin=0, end=3),
        dict(type='CosineAnnealingLR', begin=1, end=2, convert_to_iter_based=True),
    ]
    adversary = dict(type='mmrobust.FreeAdversary', eps=0, replays=2)
    cfg['train_cfg'] = dict(
        type='mmrobust.AdvEpochBasedTrainLoop',
        adversary=adversary,
        max_epochs=2,
        val_begin=0,  # as in mmengine
    )
    runner = Runner.from_cfg(Config(cfg))
    found = []
    train_step = runner.model.train_step

    def step(data, optim_wrapper):
        groups = optim_wrapper.optimizer.param_groups
        found.append((groups[-1]['lr'], groups[0]['lr']))
        return train_step(data, optim_wrapper)

    runner.model.train_step = step
    runner.train()
    lengths = (runner.max_iters, runner.max_epochs, len(runner.train_dataloader))
    own = runner.optim_wrapper.mmrobust_rates
    expected = rates.follow_rates(cfg['param_scheduler'], own, *lengths)
    np.testing.assert_allclose(np.array(found).T, expected, rtol=1e-9)
