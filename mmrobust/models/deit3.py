"""DeiT III (arXiv 2204.07118) with both norms of a layer, and with a ConvStem."""

from __future__ import annotations

from typing import Any

from mmpretrain.models import backbones
from mmpretrain.models.backbones.deit3 import DeiT3TransformerEncoderLayer
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from ..registry import MODELS
from .vit_base import ViTBase, check_stem_settings

_ARCHS = {'medium': 'medium'}


class DeiT3Layer(DeiT3TransformerEncoderLayer):
    """A layer whose feed-forward part has a norm of its own, ``ln2``.

    mmpretrain 1.2.0 applies ``ln1`` to it a second time and never uses ``ln2``, so
    published weights give other outputs there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """From and to tokens (n, length, channels)."""
        x = x + self.attn(self.ln1(x))
        return self.ffn(self.ln2(x), identity=x)


@MODELS.register_module()
class DeiT3(ViTBase, backbones.DeiT3):
    """mmpretrain's DeiT3 with layers as published, and layers that can be frozen.

    Weights are named as mmpretrain's. Sizes of images: see ViTBase.

    Args:
        arch: ``'small'``, ``'medium'``, ``'base'``, ``'large'`` or ``'huge'``, or a
            dict, as mmpretrain's.
        frozen_stages: so many layers from the first on do not learn, nor does what lies
            before them; -1 or 0 for none.
        **kwargs: as mmpretrain's.

    Raises:
        ConfigError: for more frozen layers than there are.
    """

    def __init__(
        self, arch: str | dict = 'base', frozen_stages: int = -1, **kwargs: Any
    ) -> None:
        super().__init__(arch=arch, **kwargs)
        for layer in self.layers:
            # Not built anew (huge has 630 million weights), nor given a bound method,
            # which a copy of the model would keep bound to the original.
            layer.__class__ = DeiT3Layer
        # What VisionTransformer's own code asks for and mmpretrain's DeiT3 lacks.
        self.pre_norm = nn.Identity()
        if self.out_type == 'avg_featmap':
            norm_cfg = kwargs.get('norm_cfg', {'type': 'LN', 'eps': 1e-6})
            self.ln2 = build_norm_layer(norm_cfg, self.embed_dims)
        self.frozen_stages = frozen_stages
        if frozen_stages > 0:
            self._freeze_stages()


@MODELS.register_module()
class DeiT3ConvStem(DeiT3):
    """DeiT3 with the convolutional stem of arXiv 2303.01870, as ViTConvStem's.

    Args:
        arch: ``'medium'`` (512 channels, 12 layers, 8 heads), or a dict as
            mmpretrain's DeiT3, which gets the same stem.
        in_channels: channels of the image.
        **kwargs: as DeiT3's.

    Raises:
        ConfigError: for another architecture, a ``patch_size`` or ``patch_cfg``, or
            more frozen layers than there are.
    """

    def __init__(
        self, arch: str | dict = 'medium', in_channels: int = 3, **kwargs: Any
    ) -> None:
        check_stem_settings('DeiT3ConvStem', arch, _ARCHS, kwargs)
        super().__init__(arch=arch, in_channels=in_channels, **kwargs)
        self._use_conv_stem(in_channels)
