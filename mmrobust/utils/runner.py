"""Builds mmengine's Runner of a config, and lets go of what it held."""

from __future__ import annotations

import gc
from typing import Any

import torch
from mmengine.config import Config, config
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
    keep_layouts()
    with doing('building what the config describes'):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def keep_layouts() -> None:
    """Lets mmengine lay out the text of a config once, for as long as it is the same.

    Its Runner, visualizer and hooks ask for it four times in a run, and a report does,
    too; yapf takes half a second for it.
    """
    stock = config.FormatCode
    if isinstance(stock, _Layouts):
        return
    config.FormatCode = _Layouts(stock)


class _Layouts:
    """yapf's function, which keeps its last answer."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self._last: tuple[Any, Any] = (None, None)

    def __call__(self, text: str, **settings: Any) -> Any:
        if self._last[0] != (text, settings):
            self._last = (text, settings), self._stock(text, **settings)
        return self._last[1]


def release(runner: Runner) -> None:
    """Closes a Runner's log files and frees its model's memory on the GPU."""
    for handler in list(runner.logger.handlers):
        handler.close()
        runner.logger.removeHandler(handler)
    del runner.model
    if torch.cuda.is_available():
        gc.collect()  # a Runner and its parts refer to each other
        torch.cuda.empty_cache()
