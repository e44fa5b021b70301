"""Backbones of which robust weights exist, and swapping one into a detector."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from ..errors import ConfigError
from ..weights.normalization import IMAGENET, UNIT, Normalization
from ..weights.sources import read_weights

_HUB = 'https://huggingface.co/suixin1424/oddefense/resolve/main/'
_MADRY = 'https://huggingface.co/madrylab/robust-imagenet-models/resolve/main/'
_ARES = 'https://ml.cs.tsinghua.edu.cn/~xiaoyang/aresbench/ckpt-imagenet/'
_STRIDES = (4, 8, 16, 32)
NO_WEIGHTS = 'none'


@dataclass(frozen=True)
class Backbone:
    """What has to be known of a backbone to put it into a detector.

    Attributes:
        config: its config, without ``out_indices`` and weights.
        normalization: of images for its published weights; a local file's own goes
            first.
        weights: where robust weights are published, as far as a file can be named.
        fresh: weights of the backbone that a classifier does not have.
    """

    config: dict[str, Any]
    normalization: Normalization = IMAGENET
    weights: str | None = None
    fresh: tuple[str, ...] = ()


def _resnet(depth: int, weights: str | None = None, **width: int) -> Backbone:
    config = {
        # mmdet's own has no other expansion than 4.
        'type': 'mmpretrain.ResNet' if width else 'ResNet',
        'depth': depth,
        **width,
        'num_stages': 4,
        'frozen_stages': 1,
        'norm_cfg': {'type': 'BN', 'requires_grad': True},
        'norm_eval': True,
        'style': 'pytorch',
    }
    return Backbone(config, weights=weights)


def _convnext(arch: str, convstem: bool, weights: str | None = None) -> Backbone:
    config = {
        'type': 'mmrobust.ConvNeXtConvStem' if convstem else 'mmpretrain.ConvNeXt',
        'arch': arch,
        'drop_path_rate': 0.0,
        'layer_scale_init_value': 1.0,
        'gap_before_final_norm': False,
        'frozen_stages': 1,
    }
    # Weights of arXiv 2303.01870 for ConvNeXts with a ConvStem take images in [0, 1].
    normalization = UNIT if convstem else IMAGENET
    return Backbone(config, normalization, weights, (r'norm[0-3]\.',))


BACKBONES = {
    'resnet18': _resnet(18, _MADRY + 'resnet18_linf_eps4.0.ckpt'),
    'resnet50': _resnet(50, _HUB + 'resnet50_linf_eps4_pure.pth'),
    'wide-resnet50-2': _resnet(
        50,
        _MADRY + 'wide_resnet50_2_linf_eps4.0.ckpt',
        stem_channels=64,
        base_channels=128,
        expansion=2,
    ),
    'wide-resnet50-4': _resnet(
        50,
        _MADRY + 'wide_resnet50_4_l2_eps3.ckpt',
        stem_channels=64,
        base_channels=256,
        expansion=1,
    ),
    'convnext-tiny': _convnext(
        'tiny', False, _HUB + 'convnext_tiny_mmcls-linf-eps-4-advan.pth'
    ),
    'convnext-small': _convnext('small', False, _ARES + 'ARES_ConvNext_Small_AT.pth'),
    'convnext-base': _convnext('base', False, _ARES + 'ARES_ConvNext_Base_AT.pth'),
    'convnext-large': _convnext('large', False, _ARES + 'ARES_ConvNext_Large_AT.pth'),
    'convnext-tiny-convstem': _convnext('tiny', True),
    'convnext-small-convstem': _convnext('small', True),
    'convnext-base-convstem': _convnext('base', True),
    'convnext-large-convstem': _convnext('large', True),
}


def swap_backbone(cfg: Config, name: str, weights: str | None) -> None:
    """Replaces the backbone by another one of the same strides.

    The neck's input channels and the normalisation of the images follow; that the
    parts fit is checked on an image.

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
            f'backbone {name!r} is unknown: choose from {", ".join(BACKBONES)}.'
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
    strides = [stride for stride, _ in _levels(model.backbone)]
    if not set(strides) <= set(_STRIDES) or len(set(strides)) < len(strides):
        raise ConfigError(
            f'the backbone {model.backbone.type} has feature levels of strides '
            f'{strides}, and {name} has {list(_STRIDES)}: keep the backbone.'
        )
    backbone = ConfigDict(deepcopy(known.config))
    backbone.out_indices = [_STRIDES.index(stride) for stride in strides]
    channels = [width for _, width in _levels(backbone)]
    backbone.init_cfg = weights_init(weights, known.fresh)
    model.backbone = backbone
    in_channels = first['in_channels']
    if isinstance(in_channels, int):
        first['in_channels'] = channels[-1]
    else:
        first['in_channels'] = channels
    set_normalization(model, weights, known.normalization)
    if first.get('start_level', 0) > 0:
        # Norms of levels that the neck leaves out get no gradient.
        cfg.find_unused_parameters = True
    _check_fit(model, name)


def set_normalization(
    model: ConfigDict, weights: str, default: Normalization | None = None
) -> None:
    """Gives images the normalisation that belongs to the backbone's weights.

    Args:
        model: config of a detector; its ``data_preprocessor`` is changed.
        weights: a file is read, and what it tells counts.
        default: for a URL and a file that tells nothing; None to change nothing.

    Raises:
        ConfigError: if the file cannot be read.
    """
    known = read_weights(weights).normalization if os.path.isfile(weights) else None
    known = known or default
    if known is None:
        return
    model.setdefault('data_preprocessor', ConfigDict(type='DetDataPreprocessor'))
    model.data_preprocessor.update(rgb_to_bgr=False, **known.settings('bgr_to_rgb'))


def weights_init(weights: str, fresh: tuple[str, ...] = ()) -> ConfigDict | None:
    """The ``init_cfg`` of a backbone; None for ``'none'``."""
    if weights == NO_WEIGHTS:
        return None
    init = ConfigDict(type='mmrobust.PretrainedBackbone', checkpoint=weights)
    if fresh:
        init.fresh = list(fresh)
    return init


def without_init(node: Any) -> Any:
    """A copy of a model config that loads no weights."""
    if isinstance(node, dict):
        return ConfigDict(
            {k: without_init(v) for k, v in node.items() if k != 'init_cfg'}
        )
    if isinstance(node, (list, tuple)):
        return type(node)(without_init(value) for value in node)
    return node


@torch.no_grad()
def _levels(backbone: dict) -> list[tuple[int, int]]:
    """Stride and channels of every output, measured on an image."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    side = 256
    try:
        built = MODELS.build(without_init(backbone))
        built.eval()
        outputs = built(torch.zeros(1, 3, side, side))
    except Exception as error:
        raise ConfigError(
            f'the backbone {backbone.get("type")} cannot be built and run '
            f'({_reason(error)}), so it cannot be swapped.'
        ) from error
    return [(side // out.shape[-1], out.shape[1]) for out in outputs]


@torch.no_grad()
def _check_fit(model: dict, name: str) -> None:
    from mmdet.registry import MODELS

    try:
        built = MODELS.build(without_init(model))
        built.eval()
        built.extract_feat(torch.zeros(1, 3, 256, 256))
    except Exception as error:
        raise ConfigError(
            f'the backbone {name} does not fit into {model["type"]} '
            f'({_reason(error)}): keep its backbone.'
        ) from error


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__
