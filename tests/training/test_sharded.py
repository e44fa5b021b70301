"""What FSDP refuses; that it trains like DDP is in distributed/test_processes.py."""

from types import SimpleNamespace

import pytest
import torch
import updates
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmrobust.distributed import whole
from mmrobust.errors import ConfigError
from mmrobust.registry import ADVERSARIES
from mmrobust.training import FreezeBackboneHook, FSDPStrategy
from mmrobust.training.sharded import check_strategy
from mmrobust.utils import runner as runners
from mmrobust.utils.acceleration import Acceleration


@pytest.mark.parametrize(
    ('settings', 'text'),
    [
        (dict(state_dict_cfg='local'), 'always full'),
        (dict(recompute=True), 'recompute needs some'),
        (dict(blocks='SwinBlock'), 'list names of classes'),
        (dict(model_wrapper=dict(use_orig_params=False)), 'alone'),
        (dict(model_wrapper=dict(sharding_strategy='HYBRID_SHARD')), 'all processes'),
    ],
)
def test_settings_that_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        FSDPStrategy(**settings)


def runner(launcher='pytorch', **changed):
    """As far as the check looks at one."""
    strategy = object.__new__(FSDPStrategy)
    strategy._launcher = launcher
    plain = dict(strategy=strategy, hooks=[], optim_wrapper={}, cfg={})
    return SimpleNamespace(**{**plain, **changed})


PGD, FREE = updates.pgd(eps=4), updates.free(eps=4)
NAMED = updates.free(eps=4, objective='cls+reg')
HOOKS = [object.__new__(EMAHook), FreezeBackboneHook()]


@pytest.mark.parametrize(
    ('given', 'method', 'speed', 'text'),
    [
        (runner(strategy=object()), FREE, {}, 'strategy object is not supported'),
        (runner('none'), FREE, {}, '--launcher'),
        (runner(), NAMED, {}, 'a second backward pass'),
        (runner(), updates.pgd(eps=4, awp_gamma=0.01), {}, 'awp_gamma'),
        (runner(optim_wrapper=dict(accumulative_counts=2)), PGD, {}, 'accumulative'),
        (runner(hooks=HOOKS), PGD, {}, 'EMAHook and FreezeBackboneHook does not'),
        (runner(), FREE, dict(channels_last=True), 'speed.channels_last'),
        (runner(), FREE, dict(compile=True), 'speed.compile'),
        (runner(cfg=dict(compile=True)), FREE, {}, 'compile does not work'),
    ],
)
def test_trainings_that_are_refused(given, method, speed, text):
    with pytest.raises(ConfigError, match=text):
        check_strategy(given, ADVERSARIES.build(dict(method)), Acceleration(**speed))


def test_trainings_that_are_not():
    plain = SimpleNamespace(hooks=HOOKS)
    for given, method in ((runner(), FREE), (runner(), PGD), (plain, NAMED)):
        speed = Acceleration(autocast='bfloat16')
        check_strategy(given, ADVERSARIES.build(dict(method)), speed)


def test_blocks_have_to_be_there():
    strategy = object.__new__(FSDPStrategy)
    strategy.blocks, strategy.skip_init_weights = ['Linear', 'SwinBlock'], False
    with pytest.raises(ConfigError, match='no module of the class SwinBlock'):
        strategy.build_model(torch.nn.Sequential(torch.nn.Linear(1, 1)))


def test_a_strategy_is_for_training_alone(monkeypatch):
    """Evaluations go without, and mmdet's own tools need a runner_type beside it."""
    seen = []
    monkeypatch.setattr(runners.RUNNERS, 'build', seen.append)
    monkeypatch.setattr(runners.Runner, 'from_cfg', seen.append)
    for training in (True, False):
        cfg = Config(dict(strategy=dict(type='mmrobust.FSDPStrategy')))
        runners.build_runner(cfg, training)
    assert seen[0].runner_type == 'FlexibleRunner'
    assert 'strategy' in seen[0]
    assert not {'runner_type', 'strategy'} & set(seen[1])


def test_a_model_that_is_whole_stays_as_it_is():
    model = torch.nn.Linear(1, 1)
    with whole(model):
        assert 'forward' not in vars(model)
