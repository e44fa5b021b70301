"""The config files of the repository, parsed once, and what tests ask of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
WHOLE = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
PARTS = sorted(CONFIGS.rglob('_base_/**/*.py'))
# Classifiers have tests of their own: configs/test_pretrain.py, studies/.
OF_DETECTORS = [
    path
    for path in WHOLE
    if not {'pretrain', 'transfer'} & {*path.parts} and 'classifier' not in path.stem
]
DETECTORS = ('faster-rcnn', 'fcos', 'dn-detr')
BACKBONES = ('r50', 'convnext', 'convnext-convstem')


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@functools.cache
def _parsed(path: Path) -> Config:
    return Config.fromfile(path)


def parse(config: Path | str) -> Config:
    """A config of its own; by name, like ``'paper/robust_fcos_r50'``."""
    path = config if isinstance(config, Path) else CONFIGS / f'{config}.py'
    return deepcopy(_parsed(path))


def walk(node: Any) -> Iterator[ConfigDict]:
    """All dicts of a config, at any depth."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for inner in node:
            yield from walk(inner)


def differences(one: Any, two: Any, path: str = '') -> set[str]:
    """Dotted paths at which two configs differ; a list is compared as a whole.

    ``_scope_``, which mmengine adds to what a base of mmdet brings, does not count:
    mmdet is the default scope anyway.
    """
    if not (isinstance(one, dict) and isinstance(two, dict)):
        return set() if one == two else {path}
    found: set[str] = set()
    for key in (set(one) | set(two)) - {'_scope_'}:
        inner = f'{path}.{key}' if path else key
        if key in one and key in two:
            found |= differences(one[key], two[key], inner)
        else:
            found.add(inner)
    return found


# By Runner, its wrap_model, mmdet's tools, Config and `--cfg-options data_root=`.
READ = {
    *inspect.signature(Runner.__init__).parameters,
    *('find_unused_parameters', 'auto_scale_lr', 'custom_imports', 'data_root'),
    *('runner_type', 'strategy'),
}


def settings(cfg: Config) -> dict:
    """What a Runner reads; variables do not count."""
    return {key: value for key, value in cfg.items() if key in READ}


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks are built without numbers in them, at once and whatever their size."""
    linspace = torch.linspace

    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        """Drop path rates are read as numbers."""
        return linspace(*args, **{**kwargs, 'device': 'cpu'})

    with mock.patch('torch.linspace', on_cpu), torch.device('meta'):
        yield


def parameter_groups(model: nn.Module, cfg: Config) -> list[dict]:
    """The optimizer's; torch itself compares each group with all before it."""

    def add(optimizer: torch.optim.Optimizer, group: dict) -> None:
        optimizer.param_groups.append({**optimizer.defaults, **group})

    with mock.patch.object(torch.optim.Optimizer, 'add_param_group', add):
        return build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups


def without_downloads(cfg: Config) -> Config:
    for node in walk(cfg.model):
        node.pop('init_cfg', None)
    return cfg
