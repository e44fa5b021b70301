"""Starts mmengine's Runners, one after the other in one process."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner


def build_runner(cfg: Config) -> Runner:
    """Builds the Runner of a config, of the class that its ``runner_type`` names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


@contextmanager
def running(cfg: Config, name: str) -> Iterator[Runner]:
    """Builds one of several Runners of a process, and frees what it held afterwards.

    Args:
        cfg: its config, which is given an ``experiment_name``: Runners of one name
            share loggers, message hubs and visualizers.
        name: what that begins with.
    """
    cfg.experiment_name = f'{name}_{os.getpid()}_{time.time_ns()}'
    if cfg.get('visualizer'):
        cfg.visualizer.name = cfg.experiment_name
    runner = build_runner(cfg)
    try:
        yield runner
    finally:
        for handler in list(runner.logger.handlers):
            handler.close()  # one log file per run stays open otherwise
            runner.logger.removeHandler(handler)
        del runner.model  # the loops that stay behind refer to their runner
        if torch.cuda.is_available():
            gc.collect()  # a runner and its parts refer to each other
            torch.cuda.empty_cache()
