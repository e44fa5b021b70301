"""A feature pyramid from the one map of a plain backbone.

Source: Li, Mao, Girshick and He, "Exploring Plain Vision Transformer Backbones for
Object Detection" (ViTDet), arXiv 2203.16527, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..registry import MODELS

_LEVELS = 4  # strides 4, 8, 16 and 32


def _norm(channels: int) -> nn.Module:
    return build_norm_layer({'type': 'LN2d', 'eps': 1e-6}, channels)


def _up(channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)


def _rescale(level: int, channels: int) -> tuple[list[nn.Module], int]:
    """Returns layers from stride 16 to a level's own, and the channels they give."""
    if level == 0:
        half = channels // 2
        return [_up(channels), _norm(half), nn.GELU(), _up(half)], channels // 4
    if level == 1:
        return [_up(channels)], channels // 2
    # Rounding up keeps the last row of a map of odd height, as a backbone does.
    return [nn.MaxPool2d(2, ceil_mode=True)] if level == 3 else [], channels


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """The neck of ViTDet, with the settings of mmdet's FPN.

    All levels come from the same map of stride 16: stride 4 by two deconvolutions with
    LayerNorm and GELU between them, 8 by one, 16 as it is, 32 by max pooling; then, for
    each, a 1 x 1 and a 3 x 3 convolution, both followed by LayerNorm. Further levels
    halve the last output as FPN's do.

    Args:
        in_channels: channels of the map, or a list of this one number as FPN takes it.
        out_channels: channels of every output.
        num_outs: number of outputs.
        start_level: the first output: 0 for stride 4, 1 for 8, 2 for 16, 3 for 32.
        add_extra_convs: what gives the outputs beyond stride 32: False for max pooling
            (mmdet's Faster R-CNN), ``'on_output'`` for convolutions of stride 2
            (mmdet's FCOS).
        relu_before_extra_convs: ReLU before the second such convolution and later ones.
        init_cfg: as FPN's.

    Raises:
        ConfigError: for settings that do not go together; in the forward pass, if the
            backbone does not give exactly one map.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        if init_cfg is None:
            layers = ['Conv2d', 'ConvTranspose2d']
            init_cfg = {'type': 'Xavier', 'layer': layers, 'distribution': 'uniform'}
        super().__init__(init_cfg=init_cfg)
        channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        if len(channels) != 1 or channels[0] % 4:
            raise ConfigError(
                f'in_channels={channels} of SimpleFeaturePyramid must be one number, '
                "that of a plain backbone's only map, and a multiple of 4, since "
                'stride 4 takes a quarter of them.'
            )
        if not 0 <= start_level < _LEVELS or num_outs < 1:
            raise ConfigError(
                f'start_level={start_level} and num_outs={num_outs}: '
                'SimpleFeaturePyramid starts at level 0 to 3 and gives at least one.'
            )
        if add_extra_convs not in (False, 'on_output'):
            raise ConfigError(
                f'add_extra_convs={add_extra_convs!r} of SimpleFeaturePyramid must be '
                "False or 'on_output', since its input has stride 16."
            )
        self.num_outs = num_outs
        self.relu_before_extra_convs = relu_before_extra_convs
        self.levels = nn.ModuleList()
        for level in range(start_level, min(_LEVELS, start_level + num_outs)):
            modules, width = _rescale(level, channels[0])
            # LayerNorm takes the place of a bias.
            modules += [
                nn.Conv2d(width, out_channels, 1, bias=False),
                _norm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                _norm(out_channels),
            ]
            self.levels.append(nn.Sequential(*modules))
        extra = num_outs - len(self.levels) if add_extra_convs else 0
        self.extra_convs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
            for _ in range(extra)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """From one map (n, in_channels, h, w) to (n, out_channels, ., .) per output."""
        if len(inputs) != 1 or inputs[0].ndim != 4:
            shapes = ', '.join(str(tuple(each.shape)) for each in inputs)
            raise ConfigError(
                'SimpleFeaturePyramid takes one map (n, channels, h, w), but the '
                f'backbone gives {shapes}: set its out_indices to one layer, and the '
                "out_type of a ViT to 'featmap'."
            )
        outs = [level(inputs[0]) for level in self.levels]
        for index, conv in enumerate(self.extra_convs):
            relu = self.relu_before_extra_convs and index > 0
            outs.append(conv(F.relu(outs[-1]) if relu else outs[-1]))
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
