"""ConvNeXt of one resolution, with a patch stem or a convolutional one.

Source: Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545, section 3.3 (isotropic
ConvNeXt); the convolutional stem is that of arXiv 2303.01870.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from mmcv.cnn.bricks.transformer import AdaptivePadding
from mmpretrain.models.backbones import ConvNeXt
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import MODELS
from .convstem import conv_stem_16

_ARCHS = {'small': {'depths': [18], 'channels': [384]}}
_STRIDE = 16


@MODELS.register_module()
class ConvNeXtIsotropic(ConvNeXt):
    """mmpretrain's ConvNeXt as a single stage on a map of stride 16.

    The stem is a convolution of 16 x 16 patches without a norm, or the convolutional
    stem of arXiv 2303.01870. Images whose sides are no multiples of 16 are padded by
    zeros at the right and bottom, as mmpretrain's ViTs do it. Names of weights:
    ``downsample_layers.0.weight`` (with a convolutional stem
    ``downsample_layers.0.{i}.weight``), ``stages.0.{block}.*`` and ``norm0.*``.

    Args:
        arch: ``'small'``, or a dict with ``depths`` and ``channels`` of one entry each.
        in_channels: channels of the image.
        convstem: the convolutional stem instead of patches.
        layer_scale_init_value: 0 means no layer scale, as published.
        out_indices: 0 or -1, the only stage.
        frozen_stages: 0, or so many blocks from the first on that do not learn; the
            stem does not either then, and the last norm does not where all are frozen.
        **kwargs: as ConvNeXt's. ``gap_before_final_norm=False`` gives a tuple of one
            map (n, channels, h / 16, w / 16) for a detector, the default of True one
            vector (n, channels) for a classifier.

    Raises:
        ConfigError: for another architecture, a patch size, other ``out_indices`` or
            more frozen blocks than there are.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        in_channels: int = 3,
        convstem: bool = False,
        layer_scale_init_value: float = 0.0,
        out_indices: int | Sequence[int] = 0,
        frozen_stages: int = 0,
        **kwargs: Any,
    ) -> None:
        if isinstance(arch, str):
            if arch not in _ARCHS:
                raise ConfigError(
                    f'arch={arch!r} is no isotropic ConvNeXt: choose '
                    f'{", ".join(_ARCHS)}, or give depths and channels.'
                )
            arch = _ARCHS[arch]
        if len(arch.get('depths', ())) != 1 or len(arch.get('channels', ())) != 1:
            raise ConfigError(
                f'arch={dict(arch)} of ConvNeXtIsotropic needs depths and channels of '
                'one entry each.'
            )
        if 'stem_patch_size' in kwargs:
            raise ConfigError(
                'stem_patch_size is no setting of ConvNeXtIsotropic, whose stride is '
                '16: leave it out.'
            )
        indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        if indices not in ([0], [-1]):
            raise ConfigError(
                f'out_indices={out_indices!r} must be 0, the only stage of '
                'ConvNeXtIsotropic.'
            )
        if not 0 <= frozen_stages <= arch['depths'][0]:
            raise ConfigError(
                f'frozen_stages={frozen_stages} counts blocks of ConvNeXtIsotropic: '
                f'choose 0 to {arch["depths"][0]}.'
            )
        super().__init__(
            arch=arch,
            in_channels=in_channels,
            layer_scale_init_value=layer_scale_init_value,
            out_indices=[0],
            frozen_stages=0,  # counted in stages there
            **kwargs,
        )
        channels = self.channels[0]
        self.downsample_layers[0] = (
            conv_stem_16(in_channels, channels)
            if convstem
            else nn.Conv2d(in_channels, channels, _STRIDE, _STRIDE)
        )
        self.adaptive_padding = AdaptivePadding(_STRIDE, _STRIDE)
        self.frozen_stages = frozen_stages
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """From images (n, in_channels, h, w) to a tuple of one output."""
        return super().forward(self.adaptive_padding(x))

    def _freeze_stages(self) -> None:
        if self.frozen_stages == 0:
            return
        blocks = self.stages[0]
        frozen = [self.downsample_layers[0], *blocks[: self.frozen_stages]]
        if self.frozen_stages == len(blocks):
            frozen.append(self.norm0)
        for module in frozen:
            module.eval()
        for parameter in chain(*(module.parameters() for module in frozen)):
            parameter.requires_grad = False

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter and number of depths, for layer-wise learning rates.

        The stem is 0, block i is i + 1, the last norm and what follows come last.
        """
        depths = self.depths[0] + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix):
            return depths - 1, depths
        if name.startswith('downsample_layers'):
            return 0, depths
        if name.startswith('stages'):
            return int(name.split('.')[2]) + 1, depths
        return depths - 1, depths
