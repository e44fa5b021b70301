"""Builds mmengine's Runner of a config, and lets go of what it held."""

from __future__ import annotations

import gc

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..errors import doing


def build_runner(cfg: Config, training: bool = False) -> Runner:
    """Builds the Runner that a config describes, of its own kind if it names one.

    Args:
        cfg: the config, in which ``strategy`` is for training alone: a checkpoint has
            whole weights whatever it was.
        training: whether the Runner is for training.
    """
    if cfg.get('strategy') is not None:
        if training:
            cfg.setdefault('runner_type', 'FlexibleRunner')
            cfg.setdefault('env_cfg', {})
        else:
            cfg.pop('strategy')
            cfg.pop('runner_type', None)
    with doing('building what the config describes'):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def release(runner: Runner) -> None:
    """Closes a Runner's log files and frees its model's memory on the GPU."""
    for handler in list(runner.logger.handlers):
        handler.close()
        runner.logger.removeHandler(handler)
    del runner.model
    if torch.cuda.is_available():
        gc.collect()  # a Runner and its parts refer to each other
        torch.cuda.empty_cache()
