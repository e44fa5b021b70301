"""Runners, one after the other in one process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ...utils.models import bare_model
from ...weights import check_checkpoint


def run_test(cfg: Config, prepare: Callable[[Any], None] | None = None) -> Any:
    """Builds a runner, tests, and lets go of what it held.

    Args:
        cfg: config of the runner.
        prepare: is given the test loop before it runs.

    Returns:
        The test loop.

    Raises:
        ConfigError: if the checkpoint does not fit the model.
    """
    runner: Runner = (
        RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    )
    check_checkpoint(cfg.load_from, bare_model(runner.model))
    loop: Any = runner.test_loop
    if prepare:
        prepare(loop)
    runner.test()
    for handler in list(runner.logger.handlers):
        handler.close()  # one log file per run stays open otherwise
        runner.logger.removeHandler(handler)
    del runner.model
    if torch.cuda.is_available():
        gc.collect()  # a runner and its parts refer to each other
        torch.cuda.empty_cache()
    return loop
