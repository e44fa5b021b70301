"""The convolutional stems that take the place of patch embeddings.

Source: Singh, Croce and Hein, "Revisiting Adversarial Training for ImageNet", arXiv
2303.01870: a convolutional stem makes adversarially trained ConvNeXts and ViTs more
robust.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmpretrain.models.utils import build_norm_layer
from torch import nn

# Widths of the stem of total stride 16, the same for every ViT and isotropic ConvNeXt.
_WIDTHS = (48, 96, 192, 384)


def conv_stem(in_channels: int, layers: Iterable[tuple[int, int]]) -> nn.Sequential:
    """Layers of a 3 x 3 convolution, LayerNorm over the channels and GELU.

    Args:
        in_channels: channels of the image.
        layers: (width, stride) of each layer.

    Returns:
        From (n, in_channels, h, w) to (n, last width, h / s, w / s), sides rounded up,
        where s is the product of the strides. Layer i has its convolution at index 3i,
        its norm at 3i + 1.
    """
    modules: list[nn.Module] = []
    for width, stride in layers:
        modules += [
            nn.Conv2d(in_channels, width, 3, stride, padding=1),
            build_norm_layer({'type': 'LN2d', 'eps': 1e-6}, width),
            nn.GELU(),
        ]
        in_channels = width
    return nn.Sequential(*modules)


def conv_stem_16(in_channels: int, out_channels: int) -> nn.Sequential:
    """The stem of total stride 16: four layers of stride 2, then a 1 x 1 convolution.

    Args:
        in_channels: channels of the image.
        out_channels: channels of a token.

    Returns:
        From (n, in_channels, h, w) to (n, out_channels, h / 16, w / 16), sides rounded
        up. The 1 x 1 convolution has index 12 and no norm after it.
    """
    stem = conv_stem(in_channels, [(width, 2) for width in _WIDTHS])
    stem.append(nn.Conv2d(_WIDTHS[-1], out_channels, 1))
    return stem
