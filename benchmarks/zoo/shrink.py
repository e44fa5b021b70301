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

from benchmarks.zoo.families import config_root

# Upper limits of what is independent of everything else.
_LIMITS = {
    'feedforward_channels': 256,
    'nms_pre': 300,
    'num_convs': 2,
    'num_proposals': 10,
    'num_queries': 20,
    'stacked_convs': 2,
}


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
    if 'checkpoint' in (part.get('init_cfg') or ()):
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
    if kind == 'MMSyncBN':  # cannot even be built outside of a distributed run
        part['type'] = 'SyncBN'
    if kind == 'DeltaXYWHBBoxCoder' and 'clip_border' in part:
        # mmdet cannot paste masks outside of the image on a CPU, where a fresh
        # QueryInst puts some of its boxes.
        part['clip_border'] = True
    if kind == 'HourglassNet':
        part['stage_blocks'] = [1] * 6
        part['stage_channels'] = [256] * 6
    if isinstance(part.get('num_grids'), list):  # of SOLO, one per level
        part['num_grids'] = [min(count, 16) for count in part['num_grids']]
    if kind == 'SwinTransformer':
        part['depths'] = [2] * len(part['depths'])
    if part.get('num_classes', 0) > 200:
        part['num_classes'] = 80
    for key, most in _LIMITS.items():
        if isinstance(part.get(key), int):
            part[key] = min(part[key], most)
    for key, most, applies in (
        # SCNet adds features of this width to the boxes' own.
        ('fc_out_channels', 64, kind != 'SCNetBBoxHead'),
        ('num_points', 256, 'importance_sample_ratio' in part),
        ('num_layers', 2, 'layer_cfg' in part),
        ('num', 16, kind.endswith('Sampler')),
        # Of proposals, and of results. QueryInst has masks for all its proposals, so
        # that the latter must be as many as its num_proposals.
        ('max_per_img', 32, 'nms_pre' in part and 'score_thr' not in part),
        ('max_per_img', 10, 'nms_pre' not in part or 'score_thr' in part),
    ):
        if applies and key in part:
            part[key] = min(part[key], most)
    if kind == 'BatchFixedSizePad':
        part['size'] = (96, 96)
    if kind == 'BatchSyncRandomResize':
        part['random_size_range'] = (64, 128)
    if kind == 'BatchResize':
        part['scale'] = (96, 64)
