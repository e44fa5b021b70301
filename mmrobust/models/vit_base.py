"""What all vision transformers here need beyond mmpretrain's."""

from __future__ import annotations

from typing import Any

from mmengine.model import initialize
from mmpretrain.models.backbones import VisionTransformer

from ..errors import ConfigError
from .convstem import conv_stem_16


class ViTBase(VisionTransformer):
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


def check_stem_settings(
    backbone: str, arch: str | dict, published: dict[str, str], settings: dict[str, Any]
) -> None:
    """Refuses architectures without a published ConvStem, and settings of patches.

    Raises:
        ConfigError: naming what is wrong.
    """
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
