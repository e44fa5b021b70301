"""Renames weights of other code bases to mmpretrain's names, by tables of rules.

The new names are those of mmpretrain's classifiers: ``backbone.*`` and ``head.*``.
mmdet's ResNet has mmpretrain's (and torchvision's) names. Values are never reshaped but
where the same numbers have another shape: a linear layer stored as a 1 x 1 convolution,
a layer scale with trailing axes of 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from .sources import SOURCES, Weights

Rule = tuple[str, str]
# Heads that no classifier here has are not missed.
_HEADS = ('head', 'fc.', 'classifier.', 'aux')


@dataclass(frozen=True)
class Layout:
    """One code base's names for one architecture.

    Attributes:
        name: for reports.
        marker: a weight that no other layout has, as a regular expression.
        rules: (regular expression of the start of a name, its replacement among the
            backbone's names or ``head.*``); the first that matches counts, and a name
            that none matches stays out.
    """

    name: str
    marker: str
    rules: tuple[Rule, ...]


_STEM = r'downsample_layers.0.'
_FC = (r'head\.fc\.', 'head.fc.')

# Inside a block: timm, Facebook.
_CONVNEXT_BLOCK: tuple[tuple[str, str], ...] = (
    (r'conv_dw\.', 'depthwise_conv.'),
    (r'dwconv\.', 'depthwise_conv.'),
    (r'norm\.', 'norm.'),
    (r'(?:mlp\.fc|pwconv)1\.', 'pointwise_conv1.'),
    (r'(?:mlp\.fc|pwconv)2\.', 'pointwise_conv2.'),
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
        'ViT or DeiT of timm',
        r'blocks\.0\.attn\.qkv\.weight',
        (
            (r'patch_embed\.proj\.stem\.(\d+)\.', r'patch_embed.projection.\1.'),
            (r'patch_embed\.proj\.', 'patch_embed.projection.'),
            (r'(cls_token|pos_embed)$', r'\1'),
            *_blocks(r'blocks\.(\d+)\.', r'layers.\1.', _TIMM_VIT_BLOCK),
            (r'norm\.', 'ln1.'),
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
            (r'(patch_embed|layers|ln1)\.', r'\1.'),
            (r'(cls_token|pos_embed)$', r'\1'),
            (r'head\.', 'head.'),
        ),
    ),
]


def find_layout(tensors: Mapping[str, Tensor]) -> Layout | None:
    """Returns the layout that a network's names follow, or None."""
    for layout in LAYOUTS:
        if any(re.match(layout.marker, name) for name in tensors):
            return layout
    return None


def to_mm(
    layout: Layout, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Renames weights to mmpretrain's names.

    Returns:
        The renamed weights, and the names that no rule knows or that would become
        another weight's.
    """
    rules = [(re.compile(pattern), to) for pattern, to in layout.rules]
    renamed, unknown = {}, []
    for name, value in tensors.items():
        for pattern, to in rules:
            if not pattern.match(name):
                continue
            new = pattern.sub(to, name, count=1)
            new = new if new.startswith('head.') else f'backbone.{new}'
            if new not in renamed:
                renamed[new] = _same_numbers(new, value)
                break
        else:
            unknown.append(name)
    return renamed, unknown


def _same_numbers(name: str, value: Tensor) -> Tensor:
    if re.search(r'pointwise_conv\d\.weight$', name) and value.shape[2:] == (1, 1):
        return value.flatten(1)
    if name.endswith('.gamma') and value.shape[1:] == (1, 1):
        return value.flatten()
    return value


def rename(weights: Weights, wanted: Set[str] | None = None) -> dict[str, Tensor]:
    """Returns the weights of a file under mmpretrain's names.

    The layout is added to ``weights.source``, and what is not used of a head to
    ``weights.left_out``.

    Args:
        weights: the file.
        wanted: names that a module has. If the file's own names fit it better than
            renamed ones they stay, so that any module's own weights can be loaded.

    Raises:
        ConfigError: if the names are of no known layout and not the module's, or the
            network has parts that mmpretrain's of the same kind does not have.
    """
    state = {
        name if name.startswith('head.') else f'backbone.{name}': value
        for name, value in weights.tensors.items()
    }
    layout = find_layout(weights.tensors)
    if layout is not None:
        renamed, unknown = to_mm(layout, weights.tensors)
        if wanted is None or len(wanted & set(renamed)) >= len(wanted & set(state)):
            state = _without_unknown(weights, layout, renamed, unknown)
            weights.source += f', {layout.name}' * (not weights.meta)
    if layout is None if wanted is None else not wanted & set(state):
        seen = ', '.join(list(weights.tensors)[:3])
        sources = '; '.join(source.name for source in SOURCES if source.tensors)
        raise ConfigError(
            f'{weights.path!r} has names of no known source (it has, for instance, '
            f'{seen}); known are {sources}; and plain weights as '
            f'{"; ".join(layout.name for layout in LAYOUTS)}.'
        )
    return state


def _without_unknown(
    weights: Weights, layout: Layout, renamed: dict[str, Tensor], unknown: list[str]
) -> dict[str, Tensor]:
    """Returns the renamed weights without a head of which only a part is known."""
    wrong = [name for name in unknown if not name.startswith(_HEADS)]
    if wrong:
        raise ConfigError(
            f'{weights.path!r} ({weights.source}) looks like a {layout.name}, but has '
            f'{len(wrong)} weights that it does not have (for instance {wrong[0]!r}): '
            'it is a variant of which no config is known.'
        )
    heads = [name for name in renamed if name.startswith('head.') and unknown]
    weights.left_out.update([*unknown, *heads])
    return {name: value for name, value in renamed.items() if name not in heads}
