"""Estimates what a training takes of each GPU's memory, on a machine without any.

Weights, gradients and optimizer are counted; what backbone and neck keep for the
backward pass, and the most that a forward and backward pass takes beyond weights and
their gradients, is measured on tensors without content. docs/scale.md has results.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest import mock

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmrobust import cli
from mmrobust.compat.checkpointing import checkpoints_give_input_gradients
from mmrobust.utils.files import write_atomically
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
# float32: the weights, their gradients, both moments of AdamW.
_WEIGHT, _GRADIENT, _STATES = 4, 4, 8


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and still there."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls the operator, and notes memory that it returns for the first time."""
        given = {_key(each) for each in tree_leaves((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            key = _key(each)
            if key is None or key in self._known or key in given:
                continue
            storage = each.untyped_storage()
            self._known.add(key)
            self.held += storage.nbytes()
            weakref.finalize(storage, self._release, key, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return found

    def _release(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.held -= count


def _key(value: Any) -> int | None:
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


class Passes(NamedTuple):
    """Bytes that a forward pass keeps for the backward pass, and those at the peak."""

    kept: int
    peak: int


def build(model_cfg: Any) -> nn.Module:
    """Builds a model whose weights have no memory."""
    linspace = torch.linspace
    patched = mock.patch(  # drop path rates are read as numbers
        'torch.linspace', lambda *a, **k: linspace(*a, **{**k, 'device': 'cpu'})
    )
    init_default_scope('mmdet')
    with patched, torch.device('meta'):
        model: nn.Module = MODELS.build(model_cfg)
    return model.train()


def measure(
    model: Any,
    size: tuple[int, int],
    batch_size: int,
    bfloat16: bool,
    blocks: Sequence[str] = (),
    whole_update: bool = True,
) -> Passes:
    """Makes a pass of backbone and neck, with a gradient for the image as FreeAT's.

    Args:
        model: of :func:`build`; its tensors are replaced by others without content.
        size: height and width of images.
        batch_size: their number.
        bfloat16: under autocast.
        blocks: classes of modules whose activations are computed again.
        whole_update: with gradients of weights, each of which is dropped when it is
            whole; otherwise the image has one alone, as in an inner attack.
    """
    if blocks:
        apply_activation_checkpointing(
            model, check_fn=lambda module: type(module).__name__ in blocks
        )
    autocast = torch.autocast('cpu', torch.bfloat16) if bfloat16 else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), checkpoints_give_input_gradients():
        model.to_empty(device='cpu')
        for weight in model.parameters():
            weight.requires_grad_(weight.requires_grad and whole_update)
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(_drop)
        images = torch.empty(batch_size, 3, *size, requires_grad=True)
        with Held() as memory:
            with autocast:
                levels = model.extract_feat(images)
            kept = memory.held
            sum(level.float().sum() for level in levels).backward()
    return Passes(kept, memory.peak)


def _drop(weight: torch.Tensor) -> None:
    weight.grad = None


def estimate(
    cfg: Config, size: tuple[int, int], batch_size: int, processes: int
) -> dict[str, Any]:
    """Estimates the memory of a training's config.

    Returns:
        Counts of parameters, and bytes of each GPU.
    """
    for node in _dicts(cfg.model):
        node.pop('init_cfg', None)
    strategy = cfg.get('strategy') or {}
    blocks = list(strategy.get('blocks', ()))
    again = blocks if strategy.get('recompute') else []
    bfloat16 = 'BFloat16' in cfg.optim_wrapper.type
    model = build(cfg.model)
    weights = sum(each.numel() for each in model.parameters())
    learning = sum(each.numel() for each in model.parameters() if each.requires_grad)
    units = [
        sum(each.numel() for each in module.parameters())
        for module in model.modules()
        if type(module).__name__ in blocks
    ]
    rest = weights - sum(units)
    states = _WEIGHT * weights + (_GRADIENT + _STATES) * learning
    update = measure(model, size, batch_size, bfloat16, again)
    inner = measure(build(cfg.model), size, batch_size, bfloat16, again, False)
    if units:
        states //= processes
        # What no block has is gathered for a whole pass, and of blocks this one and
        # the next; gradients are shared out when a block's are whole.
        gathered = _WEIGHT * (rest + 2 * max(units)) + _GRADIENT * (rest + max(units))
    else:
        gathered = _GRADIENT * learning  # DDP's buckets
    whole = _WEIGHT * weights if units else 0
    return {
        'parameters': weights,
        'learning': learning,
        'blocks': len(units),
        'states': states,
        'gathered': gathered,
        'kept': update.kept,
        'peak': update.peak,
        'inner_peak': inner.peak,
        'update': states + gathered + update.peak,
        'attack': states + whole + (0 if units else gathered) + inner.peak,
    }


def _dicts(node: Any) -> list[Any]:
    """Lists all dicts of a config."""
    inner = list(node.values()) if isinstance(node, dict) else node
    found = [node] if isinstance(node, dict) else []
    if isinstance(inner, (list, tuple)):
        found += [each for part in inner for each in _dicts(part)]
    return found


def main() -> None:
    """Reads the command line and prints the estimates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+')
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1344))
    parser.add_argument('--batch-size', type=int, default=2)
    parser.add_argument('--processes', type=int, default=8)
    parser.add_argument('--json', help='file for all figures, in bytes')
    args = parser.parse_args()
    rows = {}
    keys = ('states', 'gathered', 'kept', 'peak', 'update', 'attack')
    print('GiB per GPU', 'parameters (M)', *keys, sep=' | ')
    for path in args.configs:
        found = estimate(
            Config.fromfile(path), tuple(args.size), args.batch_size, args.processes
        )
        rows[path] = found
        cells = [f'{found[key] / GIB:.1f}' for key in keys]
        print(path, f'{found["parameters"] / 1e6:.0f}', *cells, sep=' | ', flush=True)
    if args.json:
        write_atomically(args.json, json.dumps(rows, indent=1))


if __name__ == '__main__':
    cli.run(main)
