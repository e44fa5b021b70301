"""Vision transformers that take images of any size, with patches or a ConvStem.

The stem is the convolutional one of arXiv 2303.01870; DeiT III is arXiv 2204.07118.
"""

from __future__ import annotations

from typing import Any

from mmengine.model import initialize
from mmpretrain.models import backbones
from mmpretrain.models.backbones.deit3 import DeiT3TransformerEncoderLayer
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import MODELS
from .convnext import conv_stem_16

# mmpretrain's own 'small' is another model (768 channels, 8 layers).
_VITS = {'small': 'deit-small', 'base': 'deit-base'}
_DEIT3S = {'medium': 'medium'}


class ViTBase(backbones.VisionTransformer):
    """mmpretrain's VisionTransformer, whose pre-trained and frozen weights stay.

    Images of any size are taken, also from batch to batch: the position embeddings are
    interpolated bicubically in each forward pass, and sides that are no multiples of 16
    are padded by zeros at the right and bottom. ``out_type='featmap'`` gives a tuple of
    maps (n, channels, h / 16, w / 16), sides rounded up.
    """

    init_cfg: Any

    def init_weights(self) -> None:
        """Applies ``init_cfg`` after everything else.

        mmpretrain draws the position embeddings, and its layers their weights, after
        any ``init_cfg`` but a lone ``Pretrained``: weights from a file would be lost
        without a word.
        """
        if self.is_init:
            return
        own = self.init_cfg
        self.init_cfg = None
        super().init_weights()
        self.init_cfg = own
        if own:
            initialize(self, own)

    def train(self, mode: bool = True) -> ViTBase:
        """Sets the mode; frozen layers stay in eval mode."""
        super().train(mode)
        if self.frozen_stages > 0:
            self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages > self.num_layers:
            raise ConfigError(
                f'frozen_stages={self.frozen_stages} counts layers of '
                f'{type(self).__name__}: choose up to {self.num_layers}.'
            )
        super()._freeze_stages()

    def _use_conv_stem(self, in_channels: int) -> None:
        """Puts the stem where the patch projection is; the padding stays in force."""
        self.patch_embed.projection = conv_stem_16(in_channels, self.embed_dims)
        if self.frozen_stages > 0:
            self._freeze_stages()


def _check_stem_settings(
    backbone: str, arch: str | dict, published: dict[str, str], settings: dict[str, Any]
) -> None:
    """Refuses architectures without a published ConvStem, and settings of patches."""
    if isinstance(arch, str) and arch not in published:
        raise ConfigError(
            f'arch={arch!r} of {backbone} has no published ConvStem: choose '
            f'{" or ".join(published)}, or give a dict with embed_dims, num_layers, '
            'num_heads and feedforward_channels.'
        )
    for name in ('patch_size', 'patch_cfg'):
        if name in settings:
            raise ConfigError(
                f'{name} is no setting of {backbone}, whose stem has no patches: leave '
                'it out.'
            )


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
        _check_stem_settings('ViTConvStem', arch, _VITS, kwargs)
        if isinstance(arch, str):
            arch = _VITS[arch]
        super().__init__(arch=arch, in_channels=in_channels, **kwargs)
        self._use_conv_stem(in_channels)


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
        _check_stem_settings('DeiT3ConvStem', arch, _DEIT3S, kwargs)
        super().__init__(arch=arch, in_channels=in_channels, **kwargs)
        self._use_conv_stem(in_channels)
