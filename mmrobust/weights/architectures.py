"""The table of architectures: which configs build the network that weights belong to.

Each family of networks is a function that writes the configs of one of its sizes, for a
classifier of mmpretrain and for a detector of mmdet. :func:`recognise` finds family and
size from the shapes of weights; ``BACKBONES`` are the sizes that ``--backbone`` of
tools/train.py offers. A recognised config is built without memory and compared name by
name, so that a variant that no config can build (grouped convolutions, a deep stem, a
second normalisation) is refused instead of loaded wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError
from .checkpoints import misfits
from .normalization import IMAGENET, UNIT, Normalization

_RESNETS: dict[tuple[str, tuple[int, ...]], int] = {
    ('basic', (2, 2, 2, 2)): 18,
    ('basic', (3, 4, 6, 3)): 34,
    ('bottleneck', (3, 4, 6, 3)): 50,
    ('bottleneck', (3, 4, 23, 3)): 101,
    ('bottleneck', (3, 8, 36, 3)): 152,
}
_CONVNEXTS: dict[str, tuple[tuple[int, ...], int]] = {
    'tiny': ((3, 3, 9, 3), 96),
    'small': ((3, 3, 27, 3), 96),
    'base': ((3, 3, 27, 3), 128),
    'large': ((3, 3, 27, 3), 192),
    'xlarge': ((3, 3, 27, 3), 256),
}
# Width and depth: name, and mmpretrain's name for a ViT of it (its 'small' is another
# network).
_VITS = {
    (192, 12): ('tiny', 'deit-tiny'),
    (384, 12): ('small', 'deit-small'),
    (512, 12): ('medium', None),
    (768, 12): ('base', 'base'),
    (1024, 24): ('large', 'large'),
    (1280, 32): ('huge', 'huge'),
}
_HEADS = {
    'head.fc.weight': 'LinearClsHead',
    'head.layers.head.weight': 'VisionTransformerClsHead',
}
# Norms of feature levels, which a segmenter may have of its own.
_LEVEL_NORM = r'backbone\.norm\d\.'


@dataclass(frozen=True)
class Architecture:
    """A network by the configs that build it.

    Attributes:
        name: as ``resnet50`` or ``convnext-tiny-convstem``.
        backbone: config for a classifier of mmpretrain.
        detection: config for a detector of mmdet, with feature levels of strides 4, 8,
            16 and 32 (one, of stride 16, for those without levels).
        channels: of the feature levels.
        neck: config of a classifier's neck.
        head: config of a classifier's head; None if the weights have none.
        fresh: weights of ``detection`` that a classifier does not have.
        weights: where robust weights are published, as far as a file can be named.
        normalization: of images for published robust weights; a local file's own goes
            first.
    """

    name: str
    backbone: dict[str, Any]
    detection: dict[str, Any]
    channels: tuple[int, ...]
    neck: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
    fresh: tuple[str, ...] = ()
    weights: str | None = None
    normalization: Normalization = IMAGENET

    def classifier(self) -> dict[str, Any]:
        """Returns the config of the whole classifier, of ten classes without a head."""
        head = self.head or _head(self.channels[-1], 10)
        config = {'type': 'ImageClassifier', 'backbone': self.backbone, 'head': head}
        return {**config, 'neck': self.neck} if self.neck else config


def _head(width: int, classes: int, kind: str = 'LinearClsHead') -> dict[str, Any]:
    return {'type': kind, 'num_classes': classes, 'in_channels': width}


# --------------------------------------------------------------------------- families


def resnet(
    depth: int, stem: int = 64, base: int = 64, expansion: int | None = None
) -> Architecture:
    """Describes a ResNet by the channels of its stem, first level and blocks."""
    usual_expansion = 4 if depth >= 50 else 1
    usual = expansion in (None, usual_expansion)
    expansion = expansion or usual_expansion
    name, settings = f'resnet{depth}', {'depth': depth}
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
    return Architecture(
        name,
        {'type': 'ResNet', **settings},
        detection,
        tuple(base * expansion * 2**level for level in range(4)),
        {'type': 'GlobalAveragePooling'},
    )


def convnext(
    arch: str | dict[str, list[int]], convstem: bool = False, layer_scale: bool = True
) -> Architecture:
    """Describes a ConvNeXt of four levels, by name or by depths and channels."""
    if isinstance(arch, str):
        size, width = arch, _CONVNEXTS[arch][1]
        channels = [width * 2**level for level in range(4)]
    else:
        size, channels = '-'.join(map(str, arch['depths'])), arch['channels']
    stem = '-convstem' * convstem
    scale = {} if layer_scale else {'layer_scale_init_value': 0.0}
    kind = 'mmrobust.ConvNeXtConvStem' if convstem else 'ConvNeXt'
    detection = {
        'type': kind if convstem else f'mmpretrain.{kind}',
        'arch': arch,
        'out_indices': [0, 1, 2, 3],
        'drop_path_rate': 0.0,
        'layer_scale_init_value': 1.0,
        **scale,
        'gap_before_final_norm': False,
        'frozen_stages': 1,
    }
    return Architecture(
        f'convnext-{size}{stem}',
        {'type': kind, 'arch': arch, **scale},
        detection,
        tuple(channels),
        fresh=(r'norm[0-3]\.',),
        # Weights of arXiv 2303.01870 with a ConvStem take images in [0, 1].
        normalization=UNIT if convstem else IMAGENET,
    )


def isotropic(convstem: bool = False, layer_scale: bool = True) -> Architecture:
    """Describes the isotropic ConvNeXt of 18 blocks and 384 channels."""
    config = {'type': 'mmrobust.ConvNeXtIsotropic', 'convstem': convstem}
    if not layer_scale:
        config['layer_scale_init_value'] = 0.0
    return Architecture(
        'convnext-isotropic-small' + '-convstem' * convstem,
        config,
        {**config, 'gap_before_final_norm': False},
        (384,),
    )


def vit(
    width: int,
    depth: int,
    hidden: int,
    side: int,
    patch: int = 16,
    convstem: bool = False,
    class_token: bool = True,
    layer_scale: bool = False,
) -> Architecture:
    """Describes a ViT, or a DeiT III where no position is the class token's.

    Sizes are those of the tokens (width), of the feed-forward parts inside (hidden) and
    of the grid of patches (side), which has no patches but cells behind a ConvStem.
    """
    size, arch = _VITS.get((width, depth), (None, None))
    if hidden != 4 * width:
        size = arch = None
    if size is None and (hidden != 4 * width or width > 1024):
        # mmpretrain's 'small' has 96 channels per head, giants 88 and more.
        raise ConfigError(
            f'the weights are a ViT of {depth} layers, {width} channels and '
            f'{hidden} in between, of which the number of heads is not known.'
        )
    settings: dict[str, Any] = {'img_size': side * patch}
    if patch != 16:
        settings['patch_size'] = patch
    if class_token:
        family, kind = 'vit', 'VisionTransformer'
        if layer_scale:
            settings['layer_scale_init_value'] = 1e-5
        if convstem:
            kind = 'mmrobust.ViTConvStem'
            arch = size if size in ('small', 'base') else None
    else:
        family, kind = 'deit3', 'mmrobust.DeiT3'
        if not layer_scale:
            settings['use_layer_scale'] = False
        arch = size if size != 'tiny' else None
        if convstem:
            kind = 'mmrobust.DeiT3ConvStem'
            arch = size if size == 'medium' else None
    custom = {
        'embed_dims': width,
        'num_layers': depth,
        # No weight tells it; up to 1024 channels the known ones have 64 for each.
        'num_heads': max(width // 64, 1),
        'feedforward_channels': hidden,
    }
    backbone = {'type': kind, 'arch': arch or custom, **settings}
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


_HUB = 'https://huggingface.co/suixin1424/oddefense/resolve/main/'
_MADRY = 'https://huggingface.co/madrylab/robust-imagenet-models/resolve/main/'
_ARES = 'https://ml.cs.tsinghua.edu.cn/~xiaoyang/aresbench/ckpt-imagenet/'

# Backbones with feature levels of which robust weights exist, by name.
BACKBONES = {
    each.name: replace(each, weights=weights)
    for each, weights in (
        (resnet(18), _MADRY + 'resnet18_linf_eps4.0.ckpt'),
        (resnet(50), _HUB + 'resnet50_linf_eps4_pure.pth'),
        (resnet(50, 64, 128, 2), _MADRY + 'wide_resnet50_2_linf_eps4.0.ckpt'),
        (resnet(50, 64, 256, 1), _MADRY + 'wide_resnet50_4_l2_eps3.ckpt'),
        (convnext('tiny'), _HUB + 'convnext_tiny_mmcls-linf-eps-4-advan.pth'),
        (convnext('small'), _ARES + 'ARES_ConvNext_Small_AT.pth'),
        (convnext('base'), _ARES + 'ARES_ConvNext_Base_AT.pth'),
        (convnext('large'), _ARES + 'ARES_ConvNext_Large_AT.pth'),
        *((convnext(size, True), None) for size in ('tiny', 'small', 'base', 'large')),
    )
}


# ------------------------------------------------------------------------ recognition


def recognise(state: Mapping[str, Tensor]) -> Architecture:
    """Finds the network of weights under mmpretrain's names, and makes sure of it.

    Args:
        state: ``backbone.*`` and perhaps ``head.*``.

    Raises:
        ConfigError: if no config is known that builds exactly this network.
    """
    try:
        found = _guess(state)
        for name, kind in _HEADS.items():
            if name in state:
                classes, width = state[name].shape
                found = replace(found, head=_head(width, classes, kind))
    except ConfigError:
        raise
    except (IndexError, ValueError) as error:  # more or fewer axes than expected
        raise ConfigError(
            'a weight that tells the architecture has another number of axes than in '
            'any known network.'
        ) from error
    wanted = build_shapes(found.classifier())
    wrong = misfits(wanted, dict(state))
    if found.head is None:  # the last norm may count as the head's
        wrong = [n for n in wrong if not n.startswith(('head.', 'backbone.norm'))]
    surplus = [n for n in state if n not in wanted and not re.match(_LEVEL_NORM, n)]
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
    """Returns names and shapes of a model's state, built without memory.

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


def _require(state: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in state:
        raise ConfigError(
            f'the weights have no {name.removeprefix("backbone.")!r}, so their '
            'architecture cannot be told: is the file complete?'
        )
    return state[name].shape


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Counts the different numbers that the pattern's group takes."""
    matches = (re.match(pattern, name) for name in state)
    return len({match[1] for match in matches if match})


def _guess(state: Mapping[str, Tensor]) -> Architecture:
    """Reads family and size off the weights by which each family is known."""
    if 'backbone.layer1.0.conv1.weight' in state:
        return _guess_resnet(state)
    if 'backbone.stages.0.0.depthwise_conv.weight' in state:
        return _guess_convnext(state)
    count, width = _require(state, 'backbone.pos_embed')[1:]
    convstem = 'backbone.patch_embed.projection.0.weight' in state
    hidden = _require(state, 'backbone.layers.0.ffn.layers.0.0.weight')[0]
    patch = 'backbone.patch_embed.projection.weight'
    class_token = round(count**0.5) ** 2 != count
    return vit(
        width,
        _count(state, r'backbone\.layers\.(\d+)\.'),
        hidden,
        round((count - class_token) ** 0.5),
        16 if convstem else _require(state, patch)[-1],
        convstem,
        class_token,
        'backbone.layers.0.attn.gamma1.weight' in state,
    )


def _guess_resnet(state: Mapping[str, Tensor]) -> Architecture:
    layers = tuple(
        _count(state, rf'backbone\.layer{level}\.(\d+)\.') for level in (1, 2, 3, 4)
    )
    stem = _require(state, 'backbone.conv1.weight')[0]
    base = state['backbone.layer1.0.conv1.weight'].shape[0]
    last = state.get('backbone.layer1.0.conv3.weight')
    kind = 'basic' if last is None else 'bottleneck'
    depth = _RESNETS.get((kind, layers))
    if depth is None:
        raise ConfigError(
            f'the weights are a ResNet of {kind} blocks with {list(layers)} blocks, '
            f'which has no config: {sorted(_RESNETS.values())} are known.'
        )
    return resnet(depth, stem, base, 1 if last is None else last.shape[0] // base)


def _guess_convnext(state: Mapping[str, Tensor]) -> Architecture:
    levels = range(_count(state, r'backbone\.stages\.(\d+)\.'))
    depths = [_count(state, rf'backbone\.stages\.{i}\.(\d+)\.') for i in levels]
    first = 'backbone.stages.{}.0.depthwise_conv.weight'
    channels = [_require(state, first.format(i))[0] for i in levels]
    convstem = 'backbone.downsample_layers.0.3.weight' in state
    scale = 'backbone.stages.0.0.gamma' in state
    if len(depths) == 1:
        if (depths, channels) != ([18], [384]):
            raise ConfigError(
                f'the weights are an isotropic ConvNeXt of {depths[0]} blocks and '
                f'{channels[0]} channels; only that of 18 and 384 is known.'
            )
        return isotropic(convstem, scale)
    for size, key in _CONVNEXTS.items():
        if key == (tuple(depths), channels[0]):
            return convnext(size, convstem, scale)
    return convnext({'depths': depths, 'channels': channels}, convstem, scale)
