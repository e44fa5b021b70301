"""ConvNeXt whose patch stem is a stack of convolutions (arXiv 2303.01870)."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones import ConvNeXt

from ..errors import ConfigError
from ..registry import MODELS
from .convstem import conv_stem

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
        layers = _STEMS[arch] if isinstance(arch, str) else _SMALL
        self.downsample_layers[0] = conv_stem(
            in_channels,
            [(int(share * self.channels[0]), stride) for share, stride in layers],
        )
        self._freeze_stages()
