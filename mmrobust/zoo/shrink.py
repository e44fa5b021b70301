"""mmdet's own models at a size for a CPU.

What makes a model its family (classes, heads, losses, assigners) stays; depth, queries,
proposals and classes shrink.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from .families import config_root


def tiny_model(config: str | os.PathLike | Config) -> ConfigDict:
    """Shrinks the model of a config and removes everything that is downloaded.

    Args:
        config: an mmdet config or its path.

    Returns:
        The model's config, for ``MODELS.build`` in mmdet's scope.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    model = deepcopy(cfg.model.to_dict())
    for part in dicts(model):
        _shrink(part)
    return ConfigDict(model)


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All dicts inside a config, outer ones first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from dicts(inner)


def _shrink(part: dict[str, Any]) -> None:
    kind = str(part.get('type', ''))
    if (part.get('init_cfg') or {}) and 'Pretrained' in str(part['init_cfg']):
        part['init_cfg'] = None
    for key in ('pretrained', 'teacher_ckpt'):
        if key in part:
            part[key] = False if part[key] is True else None
    if isinstance(part.get('teacher_config'), str):
        # Relative to a checkout of mmdet: configs/gfl/...
        path = config_root() / part['teacher_config'].partition('configs/')[2]
        part['teacher_config'] = {'model': tiny_model(path)}
    if part.get('depth') == 101:
        part['depth'] = 50
    if kind == 'HourglassNet':
        part['stage_blocks'] = [1] * 6
        part['stage_channels'] = [256] * 6
    if kind == 'SwinTransformer':
        part['depths'] = [2] * len(part['depths'])
    if part.get('num_classes', 0) > 200:
        part['num_classes'] = 80
    for key, most in (
        ('feedforward_channels', 256),
        ('fc_out_channels', 64),
        ('num_queries', 20),
        ('num_points', 256 if 'importance_sample_ratio' in part else 10**9),
        ('num_layers', 2 if 'layer_cfg' in part else 10**9),
        ('num', 32 if kind.endswith('Sampler') else 10**9),
        ('nms_pre', 300),
        ('max_per_img', 10),
    ):
        if isinstance(part.get(key), int):
            part[key] = min(part[key], most)
    if kind == 'BatchFixedSizePad':
        part['size'] = (128, 128)
    if kind == 'BatchSyncRandomResize':
        part['random_size_range'] = (96, 160)
    if kind == 'BatchResize':
        part['scale'] = (128, 96)
