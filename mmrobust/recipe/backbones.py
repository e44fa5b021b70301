"""Puts another backbone, or other weights of it, into a detector's config."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from ..errors import ConfigError, doing, short
from ..utils.validation import did_you_mean
from ..weights import BACKBONES, Architecture, Normalization, read_weights

_STRIDES = (4, 8, 16, 32)
_NO_WEIGHTS = 'none'


def swap_backbone(cfg: Config, name: str, weights: str | None) -> None:
    """Replaces the backbone by another one of the same strides.

    The neck's input channels and the normalisation of the images follow; that the
    parts fit is checked on an image. A backbone of one map gets ViTDet's feature
    pyramid in the place of an FPN.

    Args:
        cfg: the config; ``model`` is changed.
        name: key of ``BACKBONES``.
        weights: file or URL; None for the published ones, ``'none'`` for no weights.

    Raises:
        ConfigError: for an unknown name, a backbone without published weights when
            none are given, and a detector whose parts do not fit.
    """
    if name not in BACKBONES:
        raise ConfigError(
            f'backbone {name!r} is unknown{did_you_mean(name, BACKBONES)}: choose from '
            f'{", ".join(BACKBONES)}.'
        )
    known = BACKBONES[name]
    weights = weights or known.weights
    if weights is None:
        raise ConfigError(
            f'no file of robust weights is known for the backbone {name!r}: give one '
            "with backbone_weights, or 'none' to start from scratch, which will "
            'hardly become robust.'
        )
    model = cfg.model
    neck = model.get('neck')
    first = neck[0] if isinstance(neck, list) else neck
    if not first or 'in_channels' not in first:
        raise ConfigError(
            f'{model.type} has no neck whose in_channels could follow another '
            'backbone: keep its backbone.'
        )
    strides = _strides(model.backbone)
    if not set(strides) <= set(_STRIDES) or len(set(strides)) < len(strides):
        raise ConfigError(
            f'the backbone {model.backbone.type} has feature levels of strides '
            f'{strides}, and {name} has {list(_STRIDES)}: keep the backbone.'
        )
    levels = [_STRIDES.index(stride) for stride in strides]
    model.backbone = ConfigDict(deepcopy(known.detection))
    if len(known.channels) == 1:
        pyramid = _pyramid(first, known, levels[0])
        model.neck = [pyramid, *neck[1:]] if isinstance(neck, list) else pyramid
    else:
        model.backbone.out_indices = levels
        channels = [known.channels[level] for level in levels]
        single = isinstance(first['in_channels'], int)
        first['in_channels'] = channels[-1] if single else channels
    _set_init(model.backbone, weights, known.fresh)
    _set_normalization(model, weights, known.normalization)
    if first.get('start_level', 0) > 0 or len(known.channels) == 1:
        # Norms of levels that the neck leaves out get no gradient, nor does a class
        # token behind the map.
        cfg.find_unused_parameters = True
    try:
        _run(model, 'extract_feat')
    except Exception as error:
        raise ConfigError(
            f'the backbone {name} does not fit into {model["type"]} '
            f'({short(str(error))}): keep its backbone.'
        ) from error


def _pyramid(neck: ConfigDict, known: Architecture, first: int) -> ConfigDict:
    """Returns ViTDet's pyramid with the levels of an FPN whose first input is given.

    Raises:
        ConfigError: for another neck.
    """
    if neck.type not in ('FPN', 'mmdet.FPN') or neck.get('end_level', -1) != -1:
        raise ConfigError(
            f'the backbone {known.name} has one map, of which only an FPN can become '
            f'several levels, and the neck is {neck.type}: choose another backbone.'
        )
    return ConfigDict(
        type='mmrobust.SimpleFeaturePyramid',
        in_channels=[known.channels[0]],
        out_channels=neck.out_channels,
        num_outs=neck.num_outs,
        start_level=first + neck.get('start_level', 0),
        add_extra_convs='on_output' if neck.get('add_extra_convs') else False,
        relu_before_extra_convs=neck.get('relu_before_extra_convs', False),
    )


def set_weights(cfg: Config, weights: str) -> None:
    """Gives the config's own backbone other weights, and images their normalisation.

    Raises:
        ConfigError: for a ResNet of Caffe style, and a file that cannot be read.
    """
    backbone = cfg.model.backbone
    if backbone.get('style') == 'caffe':
        raise ConfigError(
            'the backbone is a ResNet of Caffe style, and robust weights are made for '
            "images normalised as torchvision's: add the backbone 'resnet50' (or "
            "'resnet18'), which sets style and normalisation."
        )
    if backbone.type in ('SwinTransformer', 'mmdet.SwinTransformer'):
        backbone.type = 'mmrobust.SwinTransformer'  # mmdet's ignores its init_cfg
    levels = 'ConvNeXt' in backbone.type or 'Swin' in backbone.type
    fresh = BACKBONES['convnext-tiny'].fresh if levels else ()
    _set_init(backbone, weights, fresh)
    _set_normalization(cfg.model, weights)


def _set_init(backbone: ConfigDict, weights: str, fresh: tuple[str, ...]) -> None:
    backbone.init_cfg = None
    if weights != _NO_WEIGHTS:
        init = ConfigDict(type='mmrobust.PretrainedBackbone', checkpoint=weights)
        backbone.init_cfg = ConfigDict(init, fresh=list(fresh)) if fresh else init


def _set_normalization(
    model: ConfigDict, weights: str, default: Normalization | None = None
) -> None:
    """Normalises images as a file says, or by default where it does not tell."""
    known = read_weights(weights).normalization if os.path.isfile(weights) else None
    known = known or default
    if known is not None:
        model.setdefault(
            'data_preprocessor', ConfigDict(type='mmdet.DetDataPreprocessor')
        )
        model.data_preprocessor.update(rgb_to_bgr=False, **known.settings('bgr_to_rgb'))


def _without_init(node: Any) -> Any:
    """Copies a model config without what would load weights."""
    if isinstance(node, dict):
        inner = {k: _without_init(v) for k, v in node.items() if k != 'init_cfg'}
        return ConfigDict(inner)
    if isinstance(node, (list, tuple)):
        return type(node)(map(_without_init, node))
    return node


@torch.no_grad()
def _run(config: dict, method: str) -> Any:
    """Builds a module and runs it on an image of 256 x 256 pixels."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    built: nn.Module = MODELS.build(_without_init(config))
    built.eval()
    return getattr(built, method)(torch.zeros(1, 3, 256, 256))


def _strides(backbone: dict) -> list[int]:
    """Measures the stride of every output on an image."""
    with doing(f'running the backbone {backbone.get("type")} on an image'):
        return [256 // out.shape[-1] for out in _run(backbone, 'forward')]
