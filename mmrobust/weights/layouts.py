"""The names that other code bases give to weights, as rules that lead to mmpretrain's.

The new names are those of mmpretrain's classifiers: ``backbone.*`` and ``head.*``.
mmdet's ResNet and Swin have mmpretrain's (and torchvision's) names. Values are never
changed but where the same numbers have another shape (a linear layer stored as a 1 x 1
convolution, a layer scale with trailing axes of 1) or another order (what a Swin
merges).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Rule = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """One code base's names for one architecture.

    Attributes:
        name: for reports.
        marker: a weight that no other layout has, as a regular expression.
        rules: (regular expression of the start of a name, its replacement among the
            backbone's names or ``head.*``); the first that matches counts, and a name
            that none matches stays out.
        values: (regular expression of an old name, function of its values), for weights
            whose numbers have another order or shape there.
    """

    name: str
    marker: str
    rules: tuple[Rule, ...]
    values: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()


_STEM = r'downsample_layers.0.'
_FC = (r'head\.fc\.', 'head.fc.')
_XCIT_STEM = 'patch_embed.proj.'

# Inside a block: timm, Facebook.
_CONVNEXT_BLOCK: tuple[tuple[str, str], ...] = (
    (r'conv_dw\.', 'depthwise_conv.'),
    (r'dwconv\.', 'depthwise_conv.'),
    (r'norm\.', 'norm.'),
    (r'(?:mlp\.fc|pwconv)1\.', 'pointwise_conv1.'),
    (r'(?:mlp\.fc|pwconv)2\.', 'pointwise_conv2.'),
    (r'(?:mlp\.grn\.weight|grn\.gamma)$', 'grn.gamma'),
    (r'(?:mlp\.grn\.bias|grn\.beta)$', 'grn.beta'),
    (r'gamma$', 'gamma'),
)
_TIMM_VIT_BLOCK = (
    (r'norm1\.', 'ln1.'),
    (r'norm2\.', 'ln2.'),
    (r'attn\.(qkv|proj)\.', r'attn.\1.'),
    (r'mlp\.fc1\.', 'ffn.layers.0.0.'),
    (r'mlp\.fc2\.', 'ffn.layers.1.'),
    (r'(?:ls1\.gamma|gamma_1)$', 'attn.gamma1.weight'),
    (r'(?:ls2\.gamma|gamma_2)$', 'ffn.gamma2.weight'),
)
_TORCHVISION_VIT_BLOCK = (
    (r'ln_1\.', 'ln1.'),
    (r'ln_2\.', 'ln2.'),
    (r'self_attention\.in_proj_', 'attn.qkv.'),
    (r'self_attention\.out_proj\.', 'attn.proj.'),
    (r'mlp\.(?:0|linear_1)\.', 'ffn.layers.0.0.'),
    (r'mlp\.(?:3|linear_2)\.', 'ffn.layers.1.'),
)
_CLIP_BLOCK = (
    (r'ln_(\d)\.', r'ln\1.'),
    (r'attn\.in_proj_', 'attn.qkv.'),
    (r'attn\.out_proj\.', 'attn.proj.'),
    (r'mlp\.c_fc\.', 'ffn.layers.0.0.'),
    (r'mlp\.c_proj\.', 'ffn.layers.1.'),
)
_SWIN_BLOCK = (
    (r'norm(\d)\.', r'norm\1.'),
    (r'attn\.', 'attn.w_msa.'),
    (r'mlp\.fc1\.', 'ffn.layers.0.0.'),
    (r'mlp\.fc2\.', 'ffn.layers.1.'),
)
_XCIT_BLOCK = (
    (r'(gamma\d$|norm\d\.|attn\.)', r'\1'),
    (r'local_mp\.conv(\d)\.', r'local_mp.conv\1.conv.'),
    (r'local_mp\.bn\.', 'local_mp.conv1.bn.'),
    (r'mlp\.fc1\.', 'ffn.layers.0.0.'),
    (r'mlp\.fc2\.', 'ffn.layers.1.'),
)
_TORCHVISION_CONVNEXT_BLOCK = (
    (r'block\.0\.', 'depthwise_conv.'),
    (r'block\.2\.', 'norm.'),
    (r'block\.3\.', 'pointwise_conv1.'),
    (r'block\.5\.', 'pointwise_conv2.'),
    (r'layer_scale$', 'gamma'),
)


def _blocks(start: str, to: str, inside: tuple[tuple[str, str], ...]) -> tuple:
    """Rules for blocks, from those inside one."""
    groups = re.compile(start).groups

    def shifted(text: str) -> str:
        return re.sub(r'\\(\d)', lambda m: rf'\{int(m[1]) + groups}', text)

    return tuple((start + old, to + shifted(new)) for old, new in inside)


def _swin_rules(shift: int) -> tuple[Rule, ...]:
    """Rules for Swins, which merge patches in front of a level (shift 1) or behind."""
    merging = (
        (rf'layers\.{level + shift}\.downsample\.', f'stages.{level}.downsample.')
        for level in (0, 1, 2)
    )
    return (
        (r'patch_embed\.proj\.', 'patch_embed.projection.'),
        (r'patch_embed\.norm\.', 'patch_embed.norm.'),
        *_blocks(
            r'layers\.(\d)\.blocks\.(\d+)\.', r'stages.\1.blocks.\2.', _SWIN_BLOCK
        ),
        *merging,
        (r'norm\.', 'norm3.'),
        _FC,
        (r'head\.', 'head.fc.'),
    )


def _merged(value: Tensor) -> Tensor:
    """Orders the inputs of a merging as mmpretrain gathers them.

    Four neighbours of C channels are joined. Here they come one after the other, those
    of a column together; there the four values of a channel do, those of a row
    together.
    """
    neighbours = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return neighbours.transpose(-1, -2).flatten(-2)


_MERGING = ((r'layers\.\d\.downsample\.', _merged),)

LAYOUTS = [
    Layout(
        'ResNet of torchvision, timm, mmpretrain and mmdet',
        r'layer1\.0\.conv1\.weight',
        ((r'(conv1|bn1|layer\d)\.', r'\1.'), (r'fc\.', 'head.fc.'), _FC),
    ),
    Layout(
        'ConvNeXt of timm',
        r'stages\.0\.blocks\.0\.conv_dw\.weight',
        (
            (r'stem\.stem\.(\d+)\.', _STEM + r'\1.'),
            (r'stem\.(\d)\.', _STEM + r'\1.'),
            (r'stages\.(\d)\.downsample\.', r'downsample_layers.\1.'),
            *_blocks(
                r'stages\.(\d)\.blocks\.(\d+)\.', r'stages.\1.\2.', _CONVNEXT_BLOCK
            ),
            (r'head\.norm\.', 'norm3.'),
            _FC,
        ),
    ),
    Layout(
        'ConvNeXt of Facebook',
        r'stages\.0\.0\.dwconv\.weight',
        (
            (r'downsample_layers\.0\.stem\.(\d+)\.', _STEM + r'\1.'),
            (r'downsample_layers\.', 'downsample_layers.'),
            *_blocks(r'stages\.(\d)\.(\d+)\.', r'stages.\1.\2.', _CONVNEXT_BLOCK),
            (r'norm(\d)\.', r'norm\1.'),
            (r'norm\.', 'norm3.'),
            (r'head\.', 'head.fc.'),
        ),
    ),
    Layout(
        'isotropic ConvNeXt of Facebook',
        r'blocks\.0\.(dwconv|conv_dw)\.weight',
        (
            (r'stem\.stem\.(\d+)\.', _STEM + r'\1.'),
            (r'stem\.(weight|bias)$', _STEM + r'\1'),
            *_blocks(r'blocks\.(\d+)\.', r'stages.0.\1.', _CONVNEXT_BLOCK),
            (r'norm\.', 'norm0.'),
            (r'head\.', 'head.fc.'),
        ),
    ),
    Layout(
        'ConvNeXt of torchvision',
        r'features\.1\.0\.block\.0\.weight',
        (
            (r'features\.0\.(\d)\.', _STEM + r'\1.'),
            *(
                (rf'features\.{2 * level}\.', f'downsample_layers.{level}.')
                for level in (1, 2, 3)
            ),
            *(
                rule
                for level in (0, 1, 2, 3)
                for rule in _blocks(
                    rf'features\.{2 * level + 1}\.(\d+)\.',
                    rf'stages.{level}.\1.',
                    _TORCHVISION_CONVNEXT_BLOCK,
                )
            ),
            (r'classifier\.0\.', 'norm3.'),
            (r'classifier\.2\.', 'head.fc.'),
        ),
    ),
    Layout(
        'ConvNeXt of mmpretrain',
        r'stages\.0\.0\.depthwise_conv\.weight',
        ((r'(downsample_layers|stages|norm\d)\.', r'\1.'), _FC),
    ),
    Layout(
        'Swin of Microsoft, or of timm before 0.9',
        r'layers\.0\.downsample\.reduction\.weight',
        _swin_rules(0),
        _MERGING,
    ),
    Layout(
        'Swin of timm since 0.9',
        r'layers\.0\.blocks\.0\.attn\.relative_position_bias_table',
        _swin_rules(1),
        _MERGING,
    ),
    Layout(
        'Swin of mmpretrain or mmdet',
        r'stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight',
        ((r'(patch_embed|stages|norm\d)\.', r'\1.'), _FC),
    ),
    Layout(
        'XCiT of timm',
        r'cls_attn_blocks\.0\.attn\.q\.weight',
        (
            *(
                rule
                for index in (0, 1, 2, 3)
                for rule in (
                    (
                        rf'patch_embed\.proj\.{2 * index}\.0\.',
                        f'{_XCIT_STEM}{index}.conv.',
                    ),
                    (
                        rf'patch_embed\.proj\.{2 * index}\.1\.',
                        f'{_XCIT_STEM}{index}.bn.',
                    ),
                )
            ),
            (r'pos_embed(er)?\.token_projection\.', 'pos_embed.token_projection.conv.'),
            (r'cls_token$', 'cls_token'),
            *_blocks(r'blocks\.(\d+)\.', r'xca_layers.\1.', _XCIT_BLOCK),
            *_blocks(r'cls_attn_blocks\.(\d+)\.', r'ca_layers.\1.', _XCIT_BLOCK),
            (r'norm\.', 'norm.'),
            (r'head\.', 'head.fc.'),
        ),
    ),
    Layout(
        'XCiT of mmpretrain',
        r'xca_layers\.0\.attn\.temperature',
        ((r'(cls_token|patch_embed|pos_embed|xca_layers|ca_layers|norm)', r'\1'), _FC),
    ),
    Layout(
        'tower of CLIP as open_clip has it',
        r'transformer\.resblocks\.0\.attn\.in_proj_weight',
        (
            (r'conv1\.', 'patch_embed.projection.'),
            (r'class_embedding$', 'cls_token'),
            (r'positional_embedding$', 'pos_embed'),
            (r'ln_pre\.', 'pre_norm.'),
            (r'ln_post\.', 'ln1.'),
            *_blocks(r'transformer\.resblocks\.(\d+)\.', r'layers.\1.', _CLIP_BLOCK),
        ),
        (
            (r'class_embedding$', lambda value: value.view(1, 1, -1)),
            (r'positional_embedding$', lambda value: value[None]),
        ),
    ),
    Layout(
        'ViT or DeiT of timm',
        r'blocks\.0\.attn\.qkv\.weight',
        (
            (r'patch_embed\.proj\.stem\.(\d+)\.', r'patch_embed.projection.\1.'),
            (r'patch_embed\.proj\.', 'patch_embed.projection.'),
            (r'(cls_token|pos_embed)$', r'\1'),
            *_blocks(r'blocks\.(\d+)\.', r'layers.\1.', _TIMM_VIT_BLOCK),
            (r'norm_pre\.', 'pre_norm.'),
            (r'norm\.', 'ln1.'),
            (r'fc_norm\.', 'ln2.'),
            (r'head\.', 'head.layers.head.'),
        ),
    ),
    Layout(
        'ViT of torchvision',
        r'encoder\.layers\.encoder_layer_0\.ln_1\.weight',
        (
            (r'conv_proj\.', 'patch_embed.projection.'),
            (r'class_token$', 'cls_token'),
            (r'encoder\.pos_embedding$', 'pos_embed'),
            *_blocks(
                r'encoder\.layers\.encoder_layer_(\d+)\.',
                r'layers.\1.',
                _TORCHVISION_VIT_BLOCK,
            ),
            (r'encoder\.ln\.', 'ln1.'),
            (r'heads\.head\.', 'head.layers.head.'),
        ),
    ),
    Layout(
        'ViT or DeiT of mmpretrain',
        r'layers\.0\.attn\.qkv\.weight',
        (
            (r'(patch_embed|layers|pre_norm|ln\d)\.', r'\1.'),
            (r'(cls_token|pos_embed)$', r'\1'),
            (r'head\.', 'head.'),
        ),
    ),
]
