"""Vision transformers whose patch embedding is a stack of convolutions."""

from __future__ import annotations

from typing import Any

from ..registry import MODELS
from .vit_base import ViTBase, check_stem_settings

# mmpretrain's own 'small' is another model (768 channels, 8 layers).
_ARCHS = {'small': 'deit-small', 'base': 'deit-base'}


@MODELS.register_module()
class ViTConvStem(ViTBase):
    """mmpretrain's VisionTransformer with the convolutional stem of arXiv 2303.01870.

    Four layers of a 3 x 3 convolution of stride 2, LayerNorm over the channels and
    GELU (48, 96, 192 and 384 channels), then a 1 x 1 convolution. The weights of layer
    i of the stem are ``patch_embed.projection.{i}.*``; all others are named as
    VisionTransformer's. Sizes of images: see ViTBase.

    Args:
        arch: ``'small'`` (384 channels, 12 layers, 6 heads), ``'base'`` (768, 12, 12),
            or a dict as VisionTransformer's, which gets the same stem.
        in_channels: channels of the image.
        **kwargs: as VisionTransformer's. ``out_type='featmap'`` makes it a detector's
            backbone of one map; ``frozen_stages`` counts layers, and freezes the stem
            and the embeddings with the first one.

    Raises:
        ConfigError: for another architecture, a ``patch_size`` or ``patch_cfg``, or
            more frozen layers than there are.
    """

    def __init__(
        self, arch: str | dict = 'small', in_channels: int = 3, **kwargs: Any
    ) -> None:
        check_stem_settings('ViTConvStem', arch, _ARCHS, kwargs)
        if isinstance(arch, str):
            arch = _ARCHS[arch]
        super().__init__(arch=arch, in_channels=in_channels, **kwargs)
        self._use_conv_stem(in_channels)
