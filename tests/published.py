"""Networks with random weights, saved in the layouts of published files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from convstem_reference import stem_of
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# As revisiting-at's ViT-S has them inside its file: not quite ImageNet's.
ODD_MEAN = (0.484952, 0.456, 0.405989)


class Stem(nn.Module):
    """A stack of convolutions as an attribute ``stem``, as revisiting-at has it."""

    def __init__(self, layers: list[tuple[int, int]], last: int | None = None) -> None:
        super().__init__()
        self.stem = stem_of(layers, last)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class Isotropic(nn.Module):
    """Facebook's isotropic ConvNeXt by its names, in plain layers."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.pwconv1 = nn.Linear(width, 4 * width)
            self.pwconv2 = nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
            y = self.pwconv2(nn.functional.gelu(self.pwconv1(y)))
            return x + y.permute(0, 3, 1, 2)

    def __init__(self, convstem: bool, depth: int = 18, width: int = 384) -> None:
        super().__init__()
        self.stem = vit_stem(width) if convstem else nn.Conv2d(3, width, 16, 16)
        self.blocks = nn.ModuleList(self.Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean((2, 3))))


def vit_stem(width: int) -> Stem:
    return Stem([(48, 2), (96, 2), (192, 2), (384, 2)], width)


def network(name: str, **settings: Any) -> nn.Module:
    """A network by its usual name, with ``-convstem`` or ``isotropic``."""
    base, _, convstem = name.partition('+')
    if base == 'isotropic':
        model: nn.Module = Isotropic(bool(convstem))
    elif base == 'wide_resnet50_4':
        model = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=256, **settings)
    else:
        model = timm.create_model(base, **settings)
        if convstem and 'convnext' in base:
            width = model.stem[0].out_channels
            layers = [(width // 2, 2), (width, 2)]
            if 'base' in base or 'large' in base:
                layers = [(width // 2, 2), (3 * width // 4, 2), (width, 1)]
            model.stem = Stem(layers)
        elif convstem:
            model.patch_embed.proj = vit_stem(model.embed_dim)
    return model.eval()


def randomise(model: nn.Module) -> nn.Module:
    """Weights and statistics that are all different, and outputs of moderate size."""
    generator = torch.Generator().manual_seed(1)

    def noise(value: Tensor) -> Tensor:
        return torch.rand(value.shape, generator=generator)

    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith('num_batches_tracked'):
                continue
            if name.endswith('running_var'):
                value.copy_(0.5 + noise(value))
            elif value.ndim < 2 or name.endswith('layer_scale'):
                value.add_(0.2 * noise(value))  # norms, biases, layer scales
            else:
                value.add_(0.02 * (noise(value) - 0.5))
    return model


@lru_cache(maxsize=1)
def randomised(name: str) -> nn.Module:
    """A network to be looked at; the last one is kept."""
    return randomise(network(name))


def normaliser(mean: Any = MEAN, std: Any = STD) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))  # type: ignore


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def madry(state: dict[str, Tensor], old: bool = False, extra: str = '') -> dict:
    """MadryLab's robustness: the network twice, a normaliser twice."""
    mean, std = (value.view(3, 1, 1) for value in normaliser())
    tensors = {
        'module.normalizer.new_mean': mean,
        'module.normalizer.new_std': std,
        **prefixed(state, f'module.model.{extra}'),
        'module.attacker.normalize.new_mean': mean,
        'module.attacker.normalize.new_std': std,
        **prefixed(state, f'module.attacker.model.{extra}'),
    }
    return {'state_dict' if old else 'model': tensors, 'epoch': 89, 'optimizer': {}}


def revisiting(state: dict[str, Tensor], mean: Any = None) -> dict:
    """revisiting-at: raw images, or with a normaliser inside."""
    if mean is None:
        return prefixed(state, 'base_model.')
    mean, std = normaliser(mean)
    return {
        'base_model.normalize.mean': mean,
        'base_model.normalize.std': std,
        **prefixed(state, 'base_model.model.'),
    }


def robustbench(state: dict[str, Tensor]) -> dict:
    """A classifier behind a normaliser, as RobustBench builds them."""
    mean, std = normaliser()
    return {
        'normalize.mean': mean,
        'normalize.std': std,
        **prefixed(state, 'model.'),
    }


def save(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)
