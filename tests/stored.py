"""Tiny detectors that detect, from weights that stand in tests/detectors.

Every machine starts from the same weights, so that results differ by rounding only.
They were trained once, by

    python tests/stored.py

which takes some minutes, and gives other weights on another machine: all tests that
use them have to be run again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet)
import tiny
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor, nn

FOLDER = Path(__file__).parent / 'detectors'
UPDATES = {'fcos': 240, 'retinanet': 240, 'faster_rcnn': 200}
SQUARE = dict(num_images=4, sizes=[(96, 96)])
WRITTEN: set[str] = set()  # checkpoints, of tensors alone


def weights(family: str) -> dict[str, Tensor]:
    """A state dict in float32."""
    stored = torch.load(FOLDER / f'{family}.pth', weights_only=True)
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in stored.items()
    }


def detector(family: str) -> Any:
    """The detector with its weights, in eval mode."""
    model = MODELS.build(ConfigDict(tiny.FAMILIES[family]()))
    model.load_state_dict(weights(family))
    return model.eval()


def checkpoint(family: str, folder: Path) -> Path:
    """Writes a checkpoint as mmengine's hook does, without what resuming needs."""
    path = folder / f'{family}.pth'
    torch.save(dict(meta={}, state_dict=weights(family)), path)
    WRITTEN.add(str(path))
    return path


def batches(folder: Path) -> list[dict]:
    """All images that tests look for objects in, in groups of one size."""
    coco = tiny.make_coco(folder / 'coco')
    square = tiny.make_coco(folder / 'square', **SQUARE)
    data = [
        DATASETS.build(tiny.dataset(coco, False)),
        DATASETS.build(tiny.dataset(square, False, scale=(96, 96))),
    ]
    groups = [(0, [0, 3]), (0, [1, 4]), (0, [2, 5]), (1, [0, 1]), (1, [2, 3])]
    return [pseudo_collate([data[i][j] for j in images]) for i, images in groups]


def train(family: str, folder: Path, seed: int) -> nn.Module:
    """Learns the images by heart, under noise; at the end with fixed statistics."""
    torch.manual_seed(seed)
    model = MODELS.build(ConfigDict(tiny.FAMILIES[family]()))
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0)
    updates, groups = UPDATES[family], batches(folder)
    for update in range(updates):
        rate = 4e-3 * min(1, (update + 1) / 20) * (1 - update / updates)
        for group in optimizer.param_groups:
            group['lr'] = rate
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and update > updates // 2:
                module.eval()
        optimizer.zero_grad()
        for batch in groups:
            inputs = model.data_preprocessor(batch, True)
            noise = torch.empty_like(inputs['inputs']).uniform_(-0.07, 0.07)
            inputs['inputs'] = inputs['inputs'] + noise  # 4 pixel units
            loss, _ = model.parse_losses(model(**inputs, mode='loss'))
            (loss / len(groups)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        if update % 50 == 0:
            print(family, update, float(loss), flush=True)
    return model


def main(families: list[str]) -> None:
    """Trains, and writes in float16."""
    init_default_scope('mmdet')
    torch.set_num_threads(1)
    for family in families or list(UPDATES):
        with tempfile.TemporaryDirectory() as folder:
            model = train(family, Path(folder), seed=0)
        state = {
            name: value.half() if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        }
        FOLDER.mkdir(exist_ok=True)
        torch.save(state, FOLDER / f'{family}.pth')


if __name__ == '__main__':
    main(sys.argv[1:])
