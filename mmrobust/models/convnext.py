"""ConvNeXts with a convolutional stem or of one resolution, and the stems themselves.

Sources: Singh, Croce and Hein, "Revisiting Adversarial Training for ImageNet", arXiv
2303.01870 (a convolutional stem in place of patches makes adversarially trained
ConvNeXts and ViTs more robust); Liu et al., "A ConvNet for the 2020s", arXiv
2201.03545, section 3.3 (isotropic ConvNeXt).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmcv.cnn.bricks.transformer import AdaptivePadding
from mmpretrain.models.backbones import ConvNeXt
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import MODELS

# Widths of the stem of total stride 16, the same for every ViT and isotropic ConvNeXt.
_WIDTHS = (48, 96, 192, 384)
# Layers of a ConvNeXt's stem as (width relative to the first stage's channels, stride).
_SMALL = ((0.5, 2), (1.0, 2))
_LARGE = ((0.5, 2), (0.75, 2), (1.0, 1))
_STEMS = {'tiny': _SMALL, 'small': _SMALL, 'base': _LARGE, 'large': _LARGE}
_ISOTROPIC = {'small': {'depths': [18], 'channels': [384]}}
_LISTS = ('depths', 'channels')
_STRIDE = 16


def conv_stem(in_channels: int, layers: Iterable[tuple[int, int]]) -> nn.Sequential:
    """Builds layers of a 3 x 3 convolution, LayerNorm over the channels and GELU.

    The stem leads from (n, in_channels, h, w) to (n, last width, h / s, w / s), sides
    rounded up, where s is the product of the strides; ``layers`` are (width, stride).
    Layer i has its convolution at index 3i, its norm at 3i + 1.
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
    """Builds four layers of stride 2, then a 1 x 1 convolution without a norm.

    The stem leads from (n, in_channels, h, w) to (n, out_channels, h / 16, w / 16),
    sides rounded up. The 1 x 1 convolution has index 12.
    """
    stem = conv_stem(in_channels, [(width, 2) for width in _WIDTHS])
    stem.append(nn.Conv2d(_WIDTHS[-1], out_channels, 1))
    return stem


def _refuse_patches(backbone: ConvNeXt, settings: dict[str, Any]) -> None:
    if 'stem_patch_size' in settings:
        raise ConfigError(
            f'stem_patch_size is no setting of {type(backbone).__name__}, whose stride '
            'is fixed: leave it out.'
        )


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
        _refuse_patches(self, kwargs)
        super().__init__(arch=arch, in_channels=in_channels, **kwargs)
        layers = _STEMS[arch] if isinstance(arch, str) else _SMALL
        self.downsample_layers[0] = conv_stem(
            in_channels,
            [(int(share * self.channels[0]), stride) for share, stride in layers],
        )
        self._freeze_stages()


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
        arch = _ISOTROPIC.get(arch, arch) if isinstance(arch, str) else arch
        if isinstance(arch, str) or [len(arch.get(k, ())) for k in _LISTS] != [1, 1]:
            raise ConfigError(
                f'arch={arch!r} is no isotropic ConvNeXt: choose '
                f'{", ".join(_ISOTROPIC)}, or give depths and channels, one entry each.'
            )
        _refuse_patches(self, kwargs)
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
            module.eval().requires_grad_(False)

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
