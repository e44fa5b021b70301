"""Converted schedules, stepped through: every rate follows the new rate and length."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmrobust import robustify
from mmrobust.recipe.schedule import (
    convert_hooks,
    convert_loop,
    convert_schedulers,
)

# Schedulers over a training of 12 epochs, and what they need besides their length.
KINDS = {
    'Constant': dict(factor=0.5, begin=4, end=9),
    'CosineAnnealing': dict(T_max=12, eta_min=0.002),
    'CosineRestart': dict(periods=[5, 7], restart_weights=[1, 0.5], eta_min=0.002),
    'Exponential': dict(gamma=0.8),
    'Linear': dict(start_factor=1.0, end_factor=0.05, end=12),
    'MultiStep': dict(milestones=[8, 11]),
    'OneCycle': dict(eta_max=0.04, total_steps=12),
    'Poly': dict(eta_min=0.002, power=0.9, end=12),
    'ReduceOnPlateau': dict(patience=2, min_value=0.001),
    'Step': dict(step_size=3, gamma=0.5),
    'QuadraticWarmup': dict(end=2),
}
OLD, NEW, TENTH = 0.02, 1e-4, 0.1


def rates(schedulers, lr, epochs, length):
    """The rates of the rest and of the backbone in every update of a training."""
    parts = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [dict(params=[parts[0]]), dict(params=[parts[1]], lr=lr * TENTH)]
    wrapper = OptimWrapper(torch.optim.SGD(groups, lr=lr))
    built = []
    for scheduler in deepcopy(schedulers):
        total = epochs if scheduler.get('by_epoch', True) else epochs * length
        scheduler.setdefault('end', total)
        rest = dict(optimizer=wrapper, epoch_length=length)
        built.append(PARAM_SCHEDULERS.build(scheduler, default_args=rest))
    found = []
    for _ in range(epochs):
        for _ in range(length):
            found.append([group['lr'] for group in wrapper.optimizer.param_groups])
            wrapper.optimizer.step()
            for scheduler in built:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in built:
            if getattr(scheduler, 'need_val_args', False):
                scheduler.step(dict(loss=1.0))  # no better than the first
            if scheduler.by_epoch:
                scheduler.step()
    return list(np.array(found).T)


def convert(schedulers, epochs, replays, schedule):
    cfg = Config(dict(train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs)))
    cfg.param_scheduler = deepcopy(schedulers)
    length = convert_loop(cfg, {}, replays, schedule)
    convert_schedulers(cfg, length, OLD)
    return [dict(scheduler) for scheduler in cfg.param_scheduler], length


def compare(schedulers, epochs, replays, schedule, batches):
    """Rates relative to the first one, new over old, at the same shares of a training.

    The ratio of backbone and rest is checked on the way, over the whole schedule.
    """
    converted, length = convert(schedulers, epochs, replays, schedule)
    rest, backbone = rates(converted, NEW, length.after, batches * replays)
    np.testing.assert_allclose(backbone, rest * TENTH, rtol=1e-6)
    before = rates(schedulers, OLD, epochs, batches)[0]
    # The middles of what a batch of the old training lasts.
    places = (np.arange(len(before)) + 0.5) / len(before) * len(rest)
    return (rest[places.astype(int)] / NEW) / (before / OLD)


def test_every_scheduler_is_in_the_table():
    names = {*PARAM_SCHEDULERS.module_dict, 'QuadraticWarmupLR'}
    assert {name[:-2] for name in names if name.endswith('LR')} == set(KINDS)


@pytest.mark.parametrize(
    ('replays', 'schedule'), [(4, 2), (1, 1), (1, 0.5), (3, 2), (8, 2), (8, 4)]
)
@pytest.mark.parametrize('kind', sorted(KINDS))
def test_rates_follow(kind, replays, schedule):
    """What happens at a share of the old training happens there in the new one."""
    scheduler = dict(type=f'{kind}LR', by_epoch=True, **KINDS[kind])
    if kind == 'QuadraticWarmup':
        scheduler['type'] = 'mmdet.QuadraticWarmupLR'
    if kind not in ('Exponential', 'ReduceOnPlateau'):
        scheduler['convert_to_iter_based'] = True
    found = compare([scheduler], 12, replays, schedule, 26)
    if kind in ('QuadraticWarmup', 'ReduceOnPlateau'):
        return  # the one keeps its updates, the other waits for validations
    # An epoch of 4 or 8 replays can be cut in the middle. Others cannot, and steps come
    # up to half an epoch early or late.
    steps = kind in ('CosineRestart', 'Exponential', 'Step', 'MultiStep')
    most, off = (0.5, 0.25) if steps and replays < 4 else (0.95, 0.08)
    assert np.quantile(np.abs(np.log(found)), most) < off


@pytest.mark.parametrize(
    ('interval', 'patience', 'expected'), [(1, 2, 1), (2, 2, 2), (1, 0, 0), (1, 9, 4)]
)
def test_patience_counts_validations(interval, patience, expected):
    """6 of them where there were 12; of every second epoch, as many as before."""
    loop = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=interval)
    cfg = Config(dict(train_cfg=loop))
    cfg.param_scheduler = [dict(type='ReduceOnPlateauLR', patience=patience)]
    convert_schedulers(cfg, convert_loop(cfg, {}, 4, 2), OLD)
    assert cfg.param_scheduler[0].patience == expected


@pytest.mark.parametrize('kind', sorted(set(KINDS) - {'OneCycle'}))
def test_other_parameters_change_their_length_alone(kind):
    """A momentum is no rate."""
    prefix = 'mmdet.' if kind == 'QuadraticWarmup' else ''
    names = [f'{prefix}{kind}{kind_of}' for kind_of in ('LR', 'Momentum')]
    (rate,), length = convert([dict(type=names[0], **KINDS[kind])], 12, 4, 2)
    (momentum,), _ = convert([dict(type=names[1], **KINDS[kind])], 12, 4, 2)
    values = ('type', 'eta_min', 'eta_min_ratio', 'min_value', 'eps')
    assert length.after == 6
    assert {k: v for k, v in rate.items() if k not in values} == {
        k: v for k, v in momentum.items() if k not in values
    }
    for key in ('eta_min', 'min_value'):
        assert momentum.get(key) == KINDS[kind].get(key)
        assert not rate.get(key)
    assert momentum['type'].endswith('Momentum')


@pytest.mark.parametrize('name', ['LinearLR', 'mmdet.QuadraticWarmupLR', 'ConstantLR'])
@pytest.mark.parametrize('by_iteration', [True, False])
@pytest.mark.parametrize('replays', [1, 3, 4])
def test_a_warm_up_keeps_its_updates(name, by_iteration, replays):
    """26 updates in 26 batches stay 26 where an epoch has 104 updates."""
    warm_up = dict(type=name, by_epoch=True, begin=0, end=1)
    warm_up['convert_to_iter_based'] = True
    if by_iteration:
        warm_up = dict(type=name, by_epoch=False, begin=0, end=26)
    after = dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=8)
    converted, length = convert([warm_up, after], 8, replays, 1)
    rest, _ = rates(converted, NEW, length.after, 26 * replays)
    alone, _ = rates([warm_up], NEW, 8, 26)
    np.testing.assert_allclose(rest[:25], alone[:25], rtol=1e-6)
    assert rest.argmax() in range(24, 28)
    assert rest[-1] < 0.06 * NEW


def test_a_schedule_that_rounds_to_nothing():
    """8 epochs of 4 replays are 2 passes; the last epoch is a quarter of one."""
    schedulers = [
        dict(type='CosineAnnealingLR', eta_min=0.002, begin=0, end=7, by_epoch=True),
        dict(type='ConstantLR', factor=1, begin=7, end=8, by_epoch=True),
    ]
    (cosine, constant), _ = convert(schedulers, 8, 4, 1)
    assert (cosine['end'], constant['begin'], constant['end']) == (1.75, 1.75, 2)
    rest, backbone = rates([cosine, constant], NEW, 2, 104)
    np.testing.assert_allclose(rest[-26:], NEW / 10, rtol=0.01)
    np.testing.assert_allclose(backbone[-26:], NEW / 100, rtol=0.01)


def test_a_training_as_long_as_before_keeps_its_schedule():
    schedulers = [
        dict(type=f'{kind}LR', **KINDS[kind])
        for kind in ('Exponential', 'MultiStep', 'Step', 'Linear')
    ]
    assert convert(schedulers, 12, 1, 1)[0] == schedulers


def test_what_a_warm_up_leaves_nothing_of_is_left_out():
    warm_up = dict(type='LinearLR', end=5, convert_to_iter_based=True)
    cosine = dict(type='CosineAnnealingLR', begin=5, end=8)
    converted, length = convert([warm_up, cosine], 8, 1, 0.25)
    assert [each['type'] for each in converted] == ['LinearLR']
    assert rates(converted, NEW, length.after, 26)[0].argmax() == 51


def test_milestones_that_fall_together_count_twice():
    scheduler = dict(type='MultiStepLR', milestones=[10, 11], gamma=0.1)
    (converted,), _ = convert([scheduler], 12, 3, 2)
    assert converted['milestones'] == [7, 7]
    assert rates([converted], NEW, 8, 78)[0][-1] == pytest.approx(NEW / 100)


def test_iterations_inside_a_loop_by_epoch():
    """They count updates, of which there are twice as many."""
    scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[200, 300])
    (converted,), _ = convert([scheduler], 12, 4, 2)
    assert converted['milestones'] == [400, 600]


# ------------------------------------------------------------- stock configs


def both(name, batches, **options):
    cfg = robustify(name, **options)
    lr = cfg.optim_wrapper.optimizer.lr
    adversary = cfg.train_cfg.adversary
    length = batches * adversary.get('replays', 1)
    schedulers = cfg.param_scheduler
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    return cfg, rates(schedulers, lr, cfg.train_cfg.max_epochs, length)


def test_yolox():
    """Its recipe for SGD ended at 5e-4, above the new rate."""
    cfg, (rest, backbone) = both('mmdet::yolox/yolox_s_8xb8-300e_coco.py', 8)
    np.testing.assert_allclose(backbone, rest * TENTH, rtol=1e-6)
    assert rest.max() == pytest.approx(1e-4, rel=0.01)
    assert rest.argmax() in range(38, 43)  # 5 epochs of 8 updates
    np.testing.assert_allclose(rest[-8 * 4 * 7 :], 5e-6, rtol=0.01)
    (switch,) = [h for h in cfg.custom_hooks if h['type'] == 'YOLOXModeSwitchHook']
    # mmdet's hook is off in 15 + 1 of 300 epochs, and so in 8 of 150.
    assert switch.num_last_epochs == 7


def test_rtmdet():
    _, (rest, backbone) = both('mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', 10)
    np.testing.assert_allclose(backbone, rest * TENTH, rtol=1e-6)
    # 0.004 / 20, as in the config, whose optimizer is an AdamW already.
    assert (rest.max(), rest[-1]) == pytest.approx((0.004, 0.0002), rel=0.01)
    assert rest.argmax() == pytest.approx(1000, abs=2)


def test_one_cycle():
    """Twice the updates: not an error at half of them."""
    base = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    base.param_scheduler = dict(
        type='OneCycleLR', eta_max=0.02, total_steps=12 * 5, by_epoch=False
    )
    cfg, (rest, backbone) = both(base, 5)
    assert cfg.train_cfg.max_epochs == 6
    np.testing.assert_allclose(backbone, rest * TENTH, rtol=1e-6)
    assert rest.max() == pytest.approx(1e-4, rel=0.01)
    assert rest[-1] < 1e-8


# ------------------------------------------------------------- hooks


@pytest.mark.parametrize(
    ('epochs', 'replays', 'last', 'expected'),
    [(300, 4, 15, 7), (300, 1, 15, 31), (30, 8, 3, 0), (8, 8, 1, -1), (12, 8, 15, 1)],
)
def test_last_epochs(epochs, replays, last, expected):
    """Never from the first batch on, unless there is nothing else."""
    cfg = Config(
        dict(
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs),
            custom_hooks=[dict(type='YOLOXModeSwitchHook', num_last_epochs=last)],
        )
    )
    convert_hooks(cfg, convert_loop(cfg, {}, replays, 2))
    assert cfg.custom_hooks[0].num_last_epochs == expected


def test_hooks_that_count():
    """mmengine's and mmyolo's, wherever they stand."""
    cfg = Config(
        dict(
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=300),
            custom_hooks=[
                dict(type='EMAHook', begin_epoch=100, begin_iter=2000),
                dict(type='mmdet.PipelineSwitchHook', switch_epoch=280),
            ],
            default_hooks=dict(
                param_scheduler=dict(
                    type='YOLOv5ParamSchedulerHook',
                    scheduler_type='linear',
                    lr_factor=0.01,
                    max_epochs=300,
                    warmup_epochs=3,
                    warmup_bias_lr=0.1,
                ),
                checkpoint=dict(type='CheckpointHook', interval=10),
            ),
        )
    )
    convert_hooks(cfg, convert_loop(cfg, {}, 4, 2))
    ema, switch = cfg.custom_hooks
    assert (ema.begin_epoch, ema.begin_iter, switch.switch_epoch) == (50, 4000, 140)
    rate = cfg.default_hooks.param_scheduler
    assert (rate.max_epochs, rate.warmup_epochs, rate.warmup_bias_lr) == (150, 0.75, 0)
    assert cfg.default_hooks.checkpoint.interval == 5
