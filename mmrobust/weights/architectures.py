"""Which config builds the network that weights belong to.

Shapes tell it. The config is built without memory and compared name by name, so that
a variant that no config can build (grouped convolutions, a deep stem, a second
normalisation) is refused instead of loaded wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError
from .fit import misfits

_RESNETS: dict[tuple[str, tuple[int, ...]], int] = {
    ('basic', (2, 2, 2, 2)): 18,
    ('basic', (3, 4, 6, 3)): 34,
    ('bottleneck', (3, 4, 6, 3)): 50,
    ('bottleneck', (3, 4, 23, 3)): 101,
    ('bottleneck', (3, 8, 36, 3)): 152,
}
_CONVNEXTS: dict[tuple[tuple[int, ...], int], str] = {
    ((3, 3, 9, 3), 96): 'tiny',
    ((3, 3, 27, 3), 96): 'small',
    ((3, 3, 27, 3), 128): 'base',
    ((3, 3, 27, 3), 192): 'large',
    ((3, 3, 27, 3), 256): 'xlarge',
}
# Width: name, and mmpretrain's name for a ViT of it (its 'small' is another network).
_VITS = {
    (192, 12): ('tiny', 'deit-tiny'),
    (384, 12): ('small', 'deit-small'),
    (512, 12): ('medium', None),
    (768, 12): ('base', 'base'),
    (1024, 24): ('large', 'large'),
    (1280, 32): ('huge', 'huge'),
}
_FRESH = (r'norm[0-3]\.',)


@dataclass
class Architecture:
    """A network by the configs that build it.

    Attributes:
        name: as ``resnet50`` or ``convnext-tiny-convstem``.
        backbone: config for a classifier of mmpretrain.
        detection: config for a detector of mmdet, with four feature levels (one, of
            stride 16, for those without levels).
        channels: of the feature levels.
        neck: config of a classifier's neck.
        head: config of a classifier's head; None if the weights have none.
        fresh: weights of ``detection`` that a classifier does not have.
        optional: weights of ``backbone`` that a file without a head may lack, since
            they may count as the head's.
    """

    name: str
    backbone: dict[str, Any]
    detection: dict[str, Any]
    channels: tuple[int, ...]
    neck: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
    fresh: tuple[str, ...] = ()
    optional: tuple[str, ...] = field(default=())

    def classifier(self) -> dict[str, Any]:
        """Config of the whole classifier (of ten classes if there is no head)."""
        head = self.head or _linear_head(self.channels[-1], 10)
        config = {'type': 'ImageClassifier', 'backbone': self.backbone, 'head': head}
        return {**config, 'neck': self.neck} if self.neck else config


def recognise(state: Mapping[str, Tensor]) -> Architecture:
    """Finds the network of weights under mmpretrain's names, and makes sure of it.

    Args:
        state: ``backbone.*`` and perhaps ``head.*``.

    Raises:
        ConfigError: if no config is known that builds exactly this network.
    """
    try:
        found = _guess(state)
    except ConfigError:
        raise
    except (IndexError, ValueError) as error:  # more or fewer axes than expected
        raise ConfigError(
            'a weight that tells the architecture has another number of axes than in '
            'any known network.'
        ) from error
    wanted = build_shapes(found.classifier())
    if found.head is None:
        wanted = {k: v for k, v in wanted.items() if k.startswith('backbone.')}
    optional = found.optional if found.head is None else ()
    wrong = [n for n in misfits(wanted, dict(state)) if n not in optional]
    surplus = [
        name
        for name in state
        if name not in wanted and not re.match(r'backbone\.norm\d\.', name)
    ]
    if wrong or surplus:
        raise ConfigError(
            f'the weights look like {found.name}, but {len(wrong)} of its weights are '
            f'missing or have another shape{_example(wrong)} and {len(surplus)} belong '
            f'to something else{_example(surplus)}: no backbone for this variant is '
            'known.'
        )
    return found


def _example(names: list[str]) -> str:
    return f' (for instance {names[0]!r})' if names else ''


class _WithoutMemory(TorchFunctionMode):
    """Makes constructors' parameters have shapes only; other tensors are real."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs['device'] = kwargs.get('device') or 'meta'
        return func(*args, **kwargs)


def build_shapes(model: dict[str, Any]) -> dict[str, Tensor]:
    """Names and shapes of a model's state, built without memory.

    Args:
        model: config of a classifier of mmpretrain, or of a backbone.
    """
    from mmpretrain.registry import MODELS

    # On the CPU whatever the caller's default: constructors compute with some tensors.
    with (
        DefaultScope.overwrite_default_scope('mmpretrain'),
        torch.device('cpu'),
        _WithoutMemory(),
    ):
        built: nn.Module = MODELS.build(dict(model))
    return dict(built.state_dict())


def _guess(state: Mapping[str, Tensor]) -> Architecture:
    if 'backbone.layer1.0.conv1.weight' in state:
        found = _resnet(state)
    elif 'backbone.stages.0.0.depthwise_conv.weight' in state:
        found = _convnext(state)
    else:
        found = _vit(state)
    found.head = _head(state)
    return found


def _require(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ConfigError(
            f'the weights have no {name.removeprefix("backbone.")!r}, so their '
            'architecture cannot be told: is the file complete?'
        )
    return state[name]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the pattern's group takes."""
    matches = (re.match(pattern, name) for name in state)
    return len({match[1] for match in matches if match})


def _head(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    for name, kind in (
        ('head.fc.weight', 'LinearClsHead'),
        ('head.layers.head.weight', 'VisionTransformerClsHead'),
    ):
        if name in state:
            classes, width = state[name].shape
            return _linear_head(width, classes, kind)
    return None


def _linear_head(width: int, classes: int, kind: str = 'LinearClsHead') -> dict:
    return {'type': kind, 'num_classes': classes, 'in_channels': width}


def _resnet(state: Mapping[str, Tensor]) -> Architecture:
    layers = tuple(
        _count(state, rf'backbone\.layer{level}\.(\d+)\.') for level in (1, 2, 3, 4)
    )
    stem = _require(state, 'backbone.conv1.weight').shape[0]
    base = state['backbone.layer1.0.conv1.weight'].shape[0]
    last = state.get('backbone.layer1.0.conv3.weight')
    kind = 'basic' if last is None else 'bottleneck'
    expansion = 1 if last is None else last.shape[0] // base
    depth = _RESNETS.get((kind, layers))
    if depth is None:
        raise ConfigError(
            f'the weights are a ResNet of {kind} blocks with {list(layers)} blocks, '
            f'which has no config: {sorted(_RESNETS.values())} are known.'
        )
    settings: dict[str, Any] = {'depth': depth}
    name = f'resnet{depth}'
    usual = expansion == (1 if last is None else 4)
    if not usual or stem != 64 or base != 64:
        settings.update(stem_channels=stem, base_channels=base)
    if not usual:
        settings['expansion'] = expansion
        if base * expansion == 4 * stem:
            name = f'wide-resnet{depth}-{base // stem}'
    detection = {
        # mmdet's own has no other expansion than 4.
        'type': 'ResNet' if usual else 'mmpretrain.ResNet',
        **settings,
        'num_stages': 4,
        'out_indices': [0, 1, 2, 3],
        'frozen_stages': 1,
        'norm_cfg': {'type': 'BN', 'requires_grad': True},
        'norm_eval': True,
        'style': 'pytorch',
    }
    width = base * expansion
    return Architecture(
        name,
        {'type': 'ResNet', **settings},
        detection,
        (width, 2 * width, 4 * width, 8 * width),
        {'type': 'GlobalAveragePooling'},
    )


def _convnext(state: Mapping[str, Tensor]) -> Architecture:
    levels = _count(state, r'backbone\.stages\.(\d+)\.')
    depths = tuple(
        _count(state, rf'backbone\.stages\.{level}\.(\d+)\.') for level in range(levels)
    )
    channels = tuple(
        _require(state, f'backbone.stages.{level}.0.depthwise_conv.weight').shape[0]
        for level in range(levels)
    )
    scale = (
        {} if 'backbone.stages.0.0.gamma' in state else {'layer_scale_init_value': 0.0}
    )
    if levels == 1:
        return _isotropic(state, depths[0], channels[0], scale)
    size = _CONVNEXTS.get((depths, channels[0]))
    arch: Any = size or {'depths': list(depths), 'channels': list(channels)}
    name = f'convnext-{size or "-".join(map(str, depths))}'
    convstem = 'backbone.downsample_layers.0.3.weight' in state
    backbone = {
        'type': 'mmrobust.ConvNeXtConvStem' if convstem else 'ConvNeXt',
        'arch': arch,
        **scale,
    }
    detection = {
        'type': 'mmrobust.ConvNeXtConvStem' if convstem else 'mmpretrain.ConvNeXt',
        'arch': arch,
        'out_indices': [0, 1, 2, 3],
        'drop_path_rate': 0.0,
        'layer_scale_init_value': 1.0,
        **scale,
        'gap_before_final_norm': False,
        'frozen_stages': 1,
    }
    last = f'backbone.norm{levels - 1}.'
    return Architecture(
        name + '-convstem' * convstem,
        backbone,
        detection,
        channels,
        fresh=_FRESH,
        optional=(last + 'weight', last + 'bias'),
    )


def _isotropic(
    state: Mapping[str, Tensor], depth: int, width: int, scale: dict
) -> Architecture:
    convstem = 'backbone.downsample_layers.0.3.weight' in state
    if (depth, width) != (18, 384):
        raise ConfigError(
            f'the weights are an isotropic ConvNeXt of {depth} blocks and {width} '
            'channels; only that of 18 and 384 is known.'
        )
    config = {'type': 'mmrobust.ConvNeXtIsotropic', 'convstem': convstem, **scale}
    return Architecture(
        'convnext-isotropic-small' + '-convstem' * convstem,
        config,
        {**config, 'gap_before_final_norm': False},
        (width,),
        optional=('backbone.norm0.weight', 'backbone.norm0.bias'),
    )


def _vit(state: Mapping[str, Tensor]) -> Architecture:
    position = _require(state, 'backbone.pos_embed')
    width = position.shape[-1]
    depth = _count(state, r'backbone\.layers\.(\d+)\.')
    hidden = _require(state, 'backbone.layers.0.ffn.layers.0.0.weight').shape[0]
    convstem = 'backbone.patch_embed.projection.0.weight' in state
    with_class = round(position.shape[1] ** 0.5) ** 2 != position.shape[1]
    side = round((position.shape[1] - with_class) ** 0.5)
    patch = 16
    if not convstem:
        patch = _require(state, 'backbone.patch_embed.projection.weight').shape[-1]
    size, arch = _VITS.get((width, depth), (None, None))
    if hidden != 4 * width:
        size = arch = None
    settings: dict[str, Any] = {'img_size': side * patch}
    if patch != 16:
        settings['patch_size'] = patch
    scaled = 'backbone.layers.0.attn.gamma1.weight' in state
    if size is None and (hidden != 4 * width or width > 1024):
        # mmpretrain's 'small' has 96 channels per head, giants 88 and more.
        raise ConfigError(
            f'the weights are a ViT of {depth} layers, {width} channels and '
            f'{hidden} in between, of which the number of heads is not known.'
        )
    custom = {
        'embed_dims': width,
        'num_layers': depth,
        # No weight tells it; up to 1024 channels the known ones have 64 for each.
        'num_heads': max(width // 64, 1),
        'feedforward_channels': hidden,
    }
    if with_class:
        family, kind, known = 'vit', 'VisionTransformer', arch
        if scaled:
            settings['layer_scale_init_value'] = 1e-5
        if convstem:
            kind = 'mmrobust.ViTConvStem'
            known = size if size in ('small', 'base') else None
    else:
        family, kind, known = (
            'deit3',
            'mmrobust.DeiT3',
            size if size != 'tiny' else None,
        )
        if not scaled:
            settings['use_layer_scale'] = False
        if convstem:
            kind = 'mmrobust.DeiT3ConvStem'
            known = size if size == 'medium' else None
    backbone = {'type': kind, 'arch': known or custom, **settings}
    detection = {
        **backbone,
        'type': kind if '.' in kind else f'mmpretrain.{kind}',
        'out_type': 'featmap',
    }
    return Architecture(
        f'{family}-{size or f"{depth}x{width}"}' + '-convstem' * convstem,
        backbone,
        detection,
        (width,),
    )
