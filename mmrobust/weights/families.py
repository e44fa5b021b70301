"""Families of networks: the configs that build a network of given sizes.

Each family is a function that writes the configs of one of its sizes, for a classifier
of mmpretrain and for a detector of mmdet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from .normalization import IMAGENET, UNIT, Normalization

# Depths and first channels by mmpretrain's names; those below 'tiny', and 'huge', are
# of ConvNeXt V2 alone.
CONVNEXTS: dict[str, tuple[tuple[int, ...], int]] = {
    'atto': ((2, 2, 6, 2), 40),
    'femto': ((2, 2, 6, 2), 48),
    'pico': ((2, 2, 6, 2), 64),
    'nano': ((2, 2, 8, 2), 80),
    'tiny': ((3, 3, 9, 3), 96),
    'small': ((3, 3, 27, 3), 96),
    'base': ((3, 3, 27, 3), 128),
    'large': ((3, 3, 27, 3), 192),
    'xlarge': ((3, 3, 27, 3), 256),
    'huge': ((3, 3, 27, 3), 352),
}
# Width, depth and width inside feed-forward parts: name, heads, and mmpretrain's name
# for a ViT and a DeiT III of it (its ViT 'small' is another network). No weight tells
# the heads.
_VITS: dict[tuple[int, int, int], tuple[str, int, str | None, str | None]] = {
    (192, 12, 768): ('tiny', 3, 'deit-tiny', None),
    (384, 12, 1536): ('small', 6, 'deit-small', 'small'),
    (512, 12, 2048): ('medium', 8, None, 'medium'),
    (768, 12, 3072): ('base', 12, 'base', 'base'),
    (1024, 24, 4096): ('large', 16, 'large', 'large'),
    (1280, 32, 5120): ('huge', 16, 'huge', 'huge'),
    (1408, 40, 6144): ('giant', 16, None, None),
}
# The activation of OpenAI's CLIP; that of LAION's is GELU.
QUICK_GELU = 'mmpretrain.QuickGELU'
_SWINS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): 'tiny',
    (96, (2, 2, 18, 2)): 'small',
    (128, (2, 2, 18, 2)): 'base',
    (192, (2, 2, 18, 2)): 'large',
}
_XCITS = {128: 'nano', 192: 'tiny', 384: 'small', 512: 'medium', 768: 'large'}


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
        head = self.head or new_head(self.channels[-1], 10)
        config = {'type': 'ImageClassifier', 'backbone': self.backbone, 'head': head}
        return {**config, 'neck': self.neck} if self.neck else config

    def activated(self, activation: str) -> Architecture:
        """Returns it with another activation in a ViT's feed-forward parts."""
        layers = {'layer_cfgs': {'act_cfg': {'type': activation}}}
        return replace(
            self,
            backbone={**self.backbone, **layers},
            detection={**self.detection, **layers},
        )


def new_head(width: int, classes: int, kind: str = 'LinearClsHead') -> dict[str, Any]:
    """Returns the config of a classifier's head."""
    return {'type': kind, 'num_classes': classes, 'in_channels': width}


_POOLING = {'type': 'GlobalAveragePooling'}


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
        _POOLING,
    )


def resnext(depth: int, groups: int, width: int) -> Architecture:
    """Describes a ResNeXt by the groups of its convolutions, and their channels."""
    known = resnet(depth)
    kind = {'type': 'ResNeXt', 'groups': groups}
    return replace(
        known,
        name=f'resnext{depth}-{groups}x{width}d',
        backbone={**known.backbone, **kind, 'width_per_group': width},
        detection={**known.detection, **kind, 'base_width': width},
    )


def convnext(
    arch: str | dict[str, list[int]],
    convstem: bool = False,
    layer_scale: bool = True,
    response_norm: bool = False,
) -> Architecture:
    """Describes a ConvNeXt of four levels, by name or by depths and channels.

    With ``response_norm`` it is a ConvNeXt V2.
    """
    if isinstance(arch, str):
        size, width = arch, CONVNEXTS[arch][1]
        channels = [width * 2**level for level in range(4)]
    else:
        size, channels = '-'.join(map(str, arch['depths'])), arch['channels']
    stem = '-convstem' * convstem
    scale: dict[str, Any] = {} if layer_scale else {'layer_scale_init_value': 0.0}
    if response_norm:
        scale['use_grn'] = True
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
        f'convnext{"v2" * response_norm}-{size}{stem}',
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
    pooled: bool = False,
    clip: bool = False,
) -> Architecture:
    """Describes a ViT, or a DeiT III where no position is the class token's.

    Sizes are those of the tokens (width), of the feed-forward parts inside (hidden) and
    of the grid of patches (side), which has no patches but cells behind a ConvStem. The
    classifier of a pooled one looks at the mean of the patches; CLIP's towers have a
    norm in front of the first layer. In a detector patches of 14 pixels become patches
    of 16, as its levels are of strides 4 to 32.
    """
    unknown = (None, max(width // 64, 1), None, None)
    size, heads, arch, deit3 = _VITS.get((width, depth, hidden), unknown)
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
        family, kind = 'clip' if clip else 'vit', 'VisionTransformer'
        if layer_scale:
            settings['layer_scale_init_value'] = 1e-5
        if pooled:
            settings.update(final_norm=False, out_type='avg_featmap')
        if clip:
            settings.update(pre_norm=True, norm_cfg={'type': 'LN', 'eps': 1e-5})
        if convstem:
            kind = 'mmrobust.ViTConvStem'
            arch = size if size in ('small', 'base') else None
    else:
        family, kind, arch = 'deit3', 'mmrobust.DeiT3', deit3
        if not layer_scale:
            settings['use_layer_scale'] = False
        if convstem:
            kind = 'mmrobust.DeiT3ConvStem'
            arch = size if size == 'medium' else None
    custom = {
        'embed_dims': width,
        'num_layers': depth,
        'num_heads': heads,
        'feedforward_channels': hidden,
    }
    backbone = {'type': kind, 'arch': arch or custom, **settings}
    detection = {
        **backbone,
        'type': kind if '.' in kind else f'mmpretrain.{kind}',
        'out_type': 'featmap',
    }
    if patch == 14:
        detection.update(img_size=side * 16, patch_size=16)
    return Architecture(
        f'{family}-{size or f"{depth}x{width}"}' + '-convstem' * convstem,
        backbone,
        detection,
        (width,),
    )


def swin(
    width: int, depths: Sequence[int], heads: Sequence[int], windows: Sequence[int]
) -> Architecture:
    """Describes a Swin Transformer by its first level's channels, and four levels."""
    size = _SWINS.get((width, tuple(depths)))
    if list(heads) != [width // 32 * 2**level for level in range(len(heads))]:
        size = None
    custom = {'embed_dims': width, 'depths': list(depths), 'num_heads': list(heads)}
    shape: dict[str, Any] = {'arch': size or custom, 'window_size': windows[0]}
    levels = {'out_indices': [0, 1, 2, 3], 'drop_path_rate': 0.0}
    if len(set(windows)) == 1:
        detection = {
            'type': 'mmrobust.SwinTransformer',
            **custom,
            'window_size': windows[0],
            **levels,
            'frozen_stages': 1,
        }
    else:  # mmdet's has one window for all levels
        shape['stage_cfgs'] = [{'window_size': window} for window in windows]
        detection = {
            'type': 'mmpretrain.SwinTransformer',
            **shape,
            **levels,
            'pad_small_map': True,
            # Nothing is frozen: mmpretrain's freezes when training begins, which is
            # after DDP has listed the weights that get gradients.
        }
    name = f'swin-{size or "-".join(map(str, depths))}'
    return Architecture(
        name if windows[0] == 7 else f'{name}-window{windows[0]}',
        {'type': 'SwinTransformer', **shape},
        detection,
        tuple(width * 2**level for level in range(len(depths))),
        _POOLING,
        fresh=(r'norm[0-3]\.',),
    )


def xcit(
    width: int, depth: int, heads: int, class_layers: int = 2, patch: int = 16
) -> Architecture:
    """Describes an XCiT; a detector takes the map in front of the class token."""
    size = _XCITS.get(width, width)
    settings: dict[str, Any] = {
        'embed_dims': width,
        'depth': depth,
        'num_heads': heads,
        # No weight tells it: of the published ones only the smallest is without.
        'tokens_norm': width > 128,
    }
    if patch != 16:
        settings['patch_size'] = patch
    backbone = {'type': 'XCiT', **settings, 'cls_attn_layers': class_layers}
    detection = {
        **backbone,
        'type': 'mmpretrain.XCiT',
        'cls_attn_layers': 0,
        'final_norm': False,
        'out_type': 'featmap',
    }
    return Architecture(f'xcit-{size}-{depth}', backbone, detection, (width,))
