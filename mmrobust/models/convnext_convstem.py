"""ConvNeXt whose patch stem is a stack of convolutions.

Source: Singh, Croce and Hein, "Revisiting Adversarial Training for ImageNet", arXiv
2303.01870: a convolutional stem makes adversarially trained ConvNeXts and ViTs more
robust.
"""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones import ConvNeXt
from mmpretrain.models.utils import build_norm_layer
from torch import nn

from ..errors import ConfigError
from ..registry import MODELS

# Layers of the stem as (width relative to the first stage's channels, stride).
_SMALL = ((0.5, 2), (1.0, 2))
_LARGE = ((0.5, 2), (0.75, 2), (1.0, 1))
_STEMS = {'tiny': _SMALL, 'small': _SMALL, 'base': _LARGE, 'large': _LARGE}


@MODELS.register_module()
class ConvNeXtConvStem(ConvNeXt):
    """mmpretrain's ConvNeXt with a convolutional stem of total stride 4.

    Every layer of the stem is a 3 x 3 convolution, LayerNorm over the channels and
    GELU: two of stride 2 for tiny and small, a third of stride 1 for base and large.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'`` or ``'large'``, or a dict with
            ``depths`` and ``channels``, which gets the stem of tiny.
        in_channels: channels of the image.
        **kwargs: as ConvNeXt's (``out_indices``, ``frozen_stages``, ...); a
            ``stem_patch_size`` is refused.

    Raises:
        ConfigError: for another architecture, or a patch size.
    """

    def __init__(
        self, arch: str | dict = 'tiny', in_channels: int = 3, **kwargs: Any
    ) -> None:
        if isinstance(arch, str) and arch not in _STEMS:
            raise ConfigError(
                f'arch={arch!r} has no published ConvStem: choose one of '
                f'{", ".join(_STEMS)}, or give depths and channels.'
            )
        if 'stem_patch_size' in kwargs:
            raise ConfigError(
                'stem_patch_size is no setting of ConvNeXtConvStem, whose stem has no '
                'patches: leave it out.'
            )
        super().__init__(arch=arch, in_channels=in_channels, **kwargs)
        layers: list[nn.Module] = []
        before = in_channels
        for share, stride in _STEMS[arch] if isinstance(arch, str) else _SMALL:
            width = int(share * self.channels[0])
            layers += [
                nn.Conv2d(before, width, 3, stride, padding=1),
                build_norm_layer({'type': 'LN2d', 'eps': 1e-6}, width),
                nn.GELU(),
            ]
            before = width
        self.downsample_layers[0] = nn.Sequential(*layers)
        self._freeze_stages()
