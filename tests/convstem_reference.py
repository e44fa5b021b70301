"""What the tests of ConvStem backbones compare with: plain stems, and timm's names."""

from __future__ import annotations

import re

import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

# (width, stride) of each convolution, as published, and the channels of a last 1 x 1
# convolution, if there is one.
STEMS = {
    'convnext-tiny': ([(48, 2), (96, 2)], None),
    'convnext-small': ([(48, 2), (96, 2)], None),
    'convnext-base': ([(64, 2), (96, 2), (128, 1)], None),
    'convnext-large': ([(96, 2), (144, 2), (192, 1)], None),
    'isotropic-small': ([(48, 2), (96, 2), (192, 2), (384, 2)], 384),
    'vit-small': ([(48, 2), (96, 2), (192, 2), (384, 2)], 384),
    'vit-medium': ([(48, 2), (96, 2), (192, 2), (384, 2)], 512),
    'vit-base': ([(48, 2), (96, 2), (192, 2), (384, 2)], 768),
}


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (n, c, h, w), written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = ((x - mean) ** 2).mean(1, keepdim=True)
        x = (x - mean) / (var + 1e-6).sqrt()
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def plain_stem(name: str) -> nn.Sequential:
    return stem_of(*STEMS[name])


def stem_of(layers: list[tuple[int, int]], last: int | None = None) -> nn.Sequential:
    modules: list[nn.Module] = []
    before = 3
    for width, stride in layers:
        modules.append(nn.Conv2d(before, width, (3, 3), (stride, stride), (1, 1)))
        modules += [ChannelNorm(width), nn.GELU()]
        before = width
    if last is not None:
        modules.append(nn.Conv2d(before, last, (1, 1)))
    return nn.Sequential(*modules)


def randomise(model: nn.Module) -> nn.Module:
    """No weight keeps a value that hides a mistake, as 1, 0 or 1e-6 would."""
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, std=0.3 if weight.ndim == 1 else 0.05)
        if weight.ndim == 1 and name.endswith(('weight', 'gamma')):
            weight.data += 0.8
    model.eval()
    return model


_VIT = [
    (r'^patch_embed\.proj\.', 'backbone.patch_embed.projection.'),
    (r'^blocks\.', 'backbone.layers.'),
    (r'\.norm([12])\.', r'.ln\1.'),
    (r'\.ls1\.gamma', '.attn.gamma1.weight'),
    (r'\.ls2\.gamma', '.ffn.gamma2.weight'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
    (r'^norm\.', 'backbone.ln1.'),
    (r'^(cls_token|pos_embed)$', r'backbone.\1'),
    (r'^head\.', 'head.layers.head.'),
]


def from_timm(model: nn.Module) -> dict[str, Tensor]:
    """Weights of timm's ViTs under the names of mmpretrain's ImageClassifier."""
    renamed = {}
    for name, weight in model.state_dict().items():
        for pattern, replacement in _VIT:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


def classifier(channels: int, **backbone: object) -> nn.Module:
    """An mmpretrain classifier of 1000 classes."""
    head = dict(type='VisionTransformerClsHead', num_classes=1000, in_channels=channels)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
