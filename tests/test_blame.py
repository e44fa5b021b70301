"""Whose mistake an error is: sentences for users, tracebacks for developers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mmdet.models.necks import FPN
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmrobust import cli
from mmrobust.attacks import PGD
from mmrobust.blame import blame, models_own, reason_of
from mmrobust.training import FreeAdversary
from mmrobust.errors import ConfigError

FREE = dict(type='mmrobust.FreeAdversary', eps=4, replays=2)
TRAIN = dict(type='mmrobust.AdvEpochBasedTrainLoop', max_epochs=1, adversary=FREE)
ATTACKS = dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=1))
TEST = dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)


def error_of(action: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        action()
    return caught.value


def broken(coco: Path, tmp_path: Path, key: str, value: Any) -> Exception:
    """What a runner of a config with one other setting ends with."""
    cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos(), train_cfg=TRAIN))
    cfg.merge_from_dict({key: value})
    return error_of(lambda: Runner.from_cfg(cfg).train())


@pytest.mark.parametrize(
    ('key', 'value', 'start'),
    [
        ('model.neck.out_chanels', 3, 'model.neck (FPN) cannot be built (TypeError: '),
        ('model.bbox_head.loss_bbox.gama', 3, 'model.bbox_head.loss_bbox (GIoULoss)'),
        ('model.bbox_head', [], 'model (FCOS) cannot be built'),
        ('train_dataloader.sampler.gone', 1, 'train_dataloader.sampler (DefaultSamp'),
        ('train_dataloader.num_workers', 'x', 'train_dataloader of the config cannot'),
        ('train_dataloader.dataset.pipeline.2.gone', 1, 'train_dataloader.dataset.'),
        ('train_cfg.adversary.gone', 1, 'train_cfg.adversary (mmrobust.FreeAdversary)'),
        ('optim_wrapper.optimizer.lr', -1, 'optim_wrapper.optimizer (SGD) cannot be '),
        (
            'optim_wrapper.clip_grad',
            {'x': 1},
            "optim_wrapper.clip_grad={'x': 1} ",
        ),
        ('env_cfg', {'mp_cfg': 3}, 'env_cfg of the config cannot be used'),
        ('model.neck.in_channels', [1, 2, 3], 'the model fails in its FPN without any'),
    ],
)
def test_a_setting_is_named(
    coco: Path, tmp_path: Path, key: str, value: Any, start: str
) -> None:
    sentence = str(cli.as_sentence(broken(coco, tmp_path, key, value)))
    assert sentence.startswith(start)
    assert sentence.endswith(('.', '?'))
    assert '\n' not in sentence


def test_an_image_is_named(coco: Path, tmp_path: Path) -> None:
    """With the transform that could not do it; the annotations are none's mistake."""
    key = 'train_dataloader.dataset.pipeline.2'
    value = dict(type='Resize', scale=(0, 0), keep_ratio=True)
    sentence = str(blame(broken(coco, tmp_path, key, value)))
    assert sentence.startswith('Resize of the pipeline cannot process ')
    assert str(coco / 'images') in sentence


@pytest.mark.parametrize('loop', [TRAIN, dict(type='EpochBasedTrainLoop')])
def test_a_defect_of_a_model_is_no_defect_of_ours(
    build_runner: Callable, monkeypatch: pytest.MonkeyPatch, loop: dict
) -> None:
    """Whether this package or mmengine trains it."""

    def fail(self: Any, *args: Any) -> None:
        raise RuntimeError('too small')

    monkeypatch.setattr(FPN, 'forward', fail)
    runner = build_runner(train_cfg=dict(loop, max_epochs=1))
    assert str(cli.as_sentence(error_of(runner.train))) == (
        'the model fails in its FPN without any attack (RuntimeError: too small): do '
        'its parts fit each other and the data?'
    )


def test_a_defect_of_an_adversary_keeps_its_traceback(
    build_runner: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is a model that breaks, of what the adversary gave it."""

    def wrong(self: Any, model: Any, wrapper: Any, batch: dict, iteration: int) -> None:
        images = [torch.zeros(3, 2, 2, 2)]
        return model.train_step({**batch, 'inputs': images}, optim_wrapper=wrapper)

    monkeypatch.setattr(FreeAdversary, '_train_step', wrong)
    error = error_of(build_runner(train_cfg=TRAIN).train)
    assert not isinstance(error, ConfigError)
    assert cli.as_sentence(error) is None


def test_a_defect_of_an_attack_keeps_its_traceback(
    build_runner: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Any, oracle: Any, images: list, generator: Any) -> None:
        oracle.value([image[:2] for image in images])

    monkeypatch.setattr(PGD, 'perturb', wrong)
    error = error_of(build_runner(test_cfg=TEST).test)
    assert not isinstance(error, ConfigError)
    assert cli.as_sentence(error) is None


def test_models_own_is_about_models_alone() -> None:
    with pytest.raises(ZeroDivisionError), models_own():
        _ = 1 / 0
    with pytest.raises(ConfigError, match='Linear without any attack'), models_own():
        torch.nn.Linear(2, 2)(torch.zeros(3))


def test_reasons_are_short_and_without_addresses() -> None:
    assert reason_of(ValueError(f'{object()}\n  is wrong.')) == (
        'ValueError: <object> is wrong'
    )
    assert len(reason_of(ValueError('x ' * 500))) < 300
    assert reason_of(error_of(lambda: _assert(False))) == (
        'AssertionError: raise AssertionError'
    )
    packed = 'Caught KeyError in worker 0.\nOriginal Traceback (x):\nKeyError: 3\n'
    assert reason_of(RuntimeError(packed)).endswith('KeyError: 3')


def _assert(given: bool) -> None:
    if not given:
        raise AssertionError


def test_the_traceback_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In the log file always, and on the screen if asked for."""

    def main() -> None:
        raise MemoryError('too large')

    path = tmp_path / 'log.txt'
    name = f'blame-{tmp_path.name}'
    MMLogger.get_instance(name, log_file=str(path))
    with pytest.raises(SystemExit):
        cli.run(main)
    assert capsys.readouterr().err.startswith('error: the memory is not enough')
    logging.shutdown()
    assert 'Traceback (most recent call last)' in path.read_text()
    monkeypatch.setenv(cli.TRACEBACK, '1')
    with pytest.raises(MemoryError):
        cli.run(main)
    del MMLogger._instance_dict[name]
