"""A detector that really detects, for all tests of evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from evaluated import Evaluation
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner


@pytest.fixture(scope='session')
def trained(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of an FCOS that has learned the tiny dataset by heart."""
    folder = tmp_path_factory.mktemp('trained')
    init_default_scope('mmdet')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg = tiny.runner_config(
        coco,
        folder,
        tiny.fcos(),
        experiment_name='trained',
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=45),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=4e-3),
            clip_grad=dict(max_norm=10),
        ),
        param_scheduler=[dict(type='MultiStepLR', milestones=[36], gamma=0.2)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=45)),
        val_dataloader=None,
        val_evaluator=None,
        val_cfg=None,
    )
    Runner.from_cfg(Config(cfg)).train()
    return folder / 'epoch_45.pth'


@pytest.fixture
def evaluate(
    build_runner: Callable[..., Runner],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Evaluation:
    """Tests the trained detector with attacks; other test files have their own."""
    # Without yapf, which takes longer than a tiny evaluation.
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    return Evaluation(build_runner, trained, tmp_path)
