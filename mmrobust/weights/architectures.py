"""The table of architectures: which configs build the network that weights belong to.

:func:`recognise` finds family and size from the shapes of weights; ``BACKBONES`` are
the networks that ``--backbone`` of tools/train.py offers. A recognised config is built
without memory and compared name by name, so that a variant that no config can build (a
deep stem, squeeze-and-excitation, a second normalisation) is refused instead of loaded
wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError
from .checkpoints import misfits
from .families import (
    CONVNEXTS,
    QUICK_GELU,
    Architecture,
    convnext,
    isotropic,
    new_head,
    resnet,
    resnext,
    swin,
    vit,
    xcit,
)
from .normalization import CLIP, UNIT

_RESNETS: dict[tuple[str, tuple[int, ...]], int] = {
    ('basic', (2, 2, 2, 2)): 18,
    ('basic', (3, 4, 6, 3)): 34,
    ('bottleneck', (3, 4, 6, 3)): 50,
    ('bottleneck', (3, 4, 23, 3)): 101,
    ('bottleneck', (3, 8, 36, 3)): 152,
}
_HEADS = {
    'head.fc.weight': 'LinearClsHead',
    'head.layers.head.weight': 'VisionTransformerClsHead',
}
# Norms of feature levels, which a segmenter may have of its own.
_LEVEL_NORM = r'backbone\.norm\d\.'


_HUB = 'https://huggingface.co/suixin1424/oddefense/resolve/main/'
_MADRY = 'https://huggingface.co/madrylab/robust-imagenet-models/resolve/main/'
_ARES = 'https://ml.cs.tsinghua.edu.cn/~xiaoyang/aresbench/ckpt-imagenet/'

_XCIT = 'https://github.com/RobustBench/robustbench/releases/download/v1.1/'
_ADVXL = 'https://huggingface.co/UCSC-VLAA/'
_FARE = 'https://nc.mlcloud.uni-tuebingen.de/index.php/s/'


def _swin(size: int, depth: int, window: int = 7, last: int = 7) -> Architecture:
    heads = [size // 32 * 2**level for level in range(4)]
    return swin(size, (2, 2, depth, 2), heads, (window, window, window, last))


_SMALL, _BASE = (384, 12, 1536), (768, 12, 3072)

# Backbones of which robust weights exist, by name.
BACKBONES = {
    each.name: replace(each, weights=weights)
    for each, weights in (
        (resnet(18), _MADRY + 'resnet18_linf_eps4.0.ckpt'),
        (resnet(50), _HUB + 'resnet50_linf_eps4_pure.pth'),
        (resnet(50, 64, 128, 2), _MADRY + 'wide_resnet50_2_linf_eps4.0.ckpt'),
        (resnet(50, 64, 256, 1), _MADRY + 'wide_resnet50_4_l2_eps3.ckpt'),
        (resnext(50, 32, 4), None),
        (convnext('tiny'), _HUB + 'convnext_tiny_mmcls-linf-eps-4-advan.pth'),
        (convnext('small'), _ARES + 'ARES_ConvNext_Small_AT.pth'),
        (convnext('base'), _ARES + 'ARES_ConvNext_Base_AT.pth'),
        (convnext('large'), _ARES + 'ARES_ConvNext_Large_AT.pth'),
        *((convnext(size, True), None) for size in ('tiny', 'small', 'base', 'large')),
        (_swin(96, 18), _ARES + 'ARES_Swin_small_patch4_window7_224_AT.pth'),
        (_swin(128, 18), _ARES + 'ARES_Swin_base_patch4_window7_224_AT.pth'),
        (_swin(192, 18), _ARES + 'ARES_Swin_large_patch4_window7_224_AT.pth'),
        (replace(_swin(192, 18, 14), normalization=UNIT), None),  # MIMIR's
        # One map each, of stride 16.
        (vit(*_SMALL, 14), _ARES + 'ARES_ViT_small_patch16_224_AT.pth'),
        (vit(*_BASE, 14), _ARES + 'ARES_ViT_base_patch16_224_AT.pth'),
        (vit(*_SMALL, 14, convstem=True), None),
        (replace(vit(*_BASE, 14, convstem=True), normalization=UNIT), None),
        (
            vit(1280, 32, 5120, 24, 14, pooled=True),
            _ADVXL + 'AdvXL-ViT-H14/resolve/main/advxl_vit_h14.pth',
        ),
        (
            vit(1408, 40, 6144, 24, 14, pooled=True),
            _ADVXL + 'AdvXL-ViT-g14/resolve/main/advxl_vit_g14.pth',
        ),
        (
            replace(
                vit(1024, 24, 4096, 16, 14, clip=True).activated(QUICK_GELU),
                normalization=CLIP,
            ),
            _FARE + 'jnQ2qmp9tst8kyQ/download/fare_eps_4.pt',
        ),
        *(
            (
                replace(xcit(width, 12, heads), normalization=UNIT),
                f'{_XCIT}debenedetti2022light-xcit-{size}-imagenet-linf.pth.tar',
            )
            for size, width, heads in (('s', 384, 8), ('m', 512, 8), ('l', 768, 16))
        ),
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
                found = replace(found, head=new_head(width, classes, kind))
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
    if 'backbone.stages.0.blocks.0.norm1.weight' in state:
        return _guess_swin(state)
    if 'backbone.xca_layers.0.attn.temperature' in state:
        return _guess_xcit(state)
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
        'backbone.ln2.weight' in state,
        'backbone.pre_norm.weight' in state,
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
    inner, width = _require(state, 'backbone.layer1.0.conv2.weight')[:2]
    if last is not None and inner != width:
        return resnext(depth, inner // width, width)
    return resnet(depth, stem, base, 1 if last is None else last.shape[0] // base)


def _guess_convnext(state: Mapping[str, Tensor]) -> Architecture:
    levels = range(_count(state, r'backbone\.stages\.(\d+)\.'))
    depths = [_count(state, rf'backbone\.stages\.{i}\.(\d+)\.') for i in levels]
    first = 'backbone.stages.{}.0.depthwise_conv.weight'
    channels = [_require(state, first.format(i))[0] for i in levels]
    convstem = 'backbone.downsample_layers.0.3.weight' in state
    scale = 'backbone.stages.0.0.gamma' in state
    response_norm = 'backbone.stages.0.0.grn.gamma' in state
    if len(depths) == 1:
        if (depths, channels) != ([18], [384]):
            raise ConfigError(
                f'the weights are an isotropic ConvNeXt of {depths[0]} blocks and '
                f'{channels[0]} channels; only that of 18 and 384 is known.'
            )
        return isotropic(convstem, scale)
    arch: str | dict[str, list[int]] = {'depths': depths, 'channels': channels}
    for size, key in CONVNEXTS.items():
        if key == (tuple(depths), channels[0]):
            arch = size
    return convnext(arch, convstem, scale, response_norm)


def _guess_swin(state: Mapping[str, Tensor]) -> Architecture:
    levels = range(_count(state, r'backbone\.stages\.(\d+)\.'))
    depths = [_count(state, rf'backbone\.stages\.{i}\.blocks\.(\d+)\.') for i in levels]
    table = 'backbone.stages.{}.blocks.0.attn.w_msa.relative_position_bias_table'
    shapes = [_require(state, table.format(level)) for level in levels]
    width = _require(state, 'backbone.patch_embed.projection.weight')[0]
    windows = [(isqrt(count) + 1) // 2 for count, _ in shapes]
    return swin(width, depths, [heads for _, heads in shapes], windows)


def _guess_xcit(state: Mapping[str, Tensor]) -> Architecture:
    return xcit(
        _require(state, 'backbone.cls_token')[-1],
        _count(state, r'backbone\.xca_layers\.(\d+)\.'),
        state['backbone.xca_layers.0.attn.temperature'].shape[0],
        _count(state, r'backbone\.ca_layers\.(\d+)\.'),
        2 ** _count(state, r'backbone\.patch_embed\.proj\.(\d+)\.'),
    )
