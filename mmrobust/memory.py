"""What a model's losses remember between calls, and how to make them forget it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# Their modules keep no count of losses outside of buffers.
_LAYERS = ('torch.', 'mmcv.', 'mmengine.')


class Memory:
    """A snapshot of what modules remember from one loss to the next.

    Seesaw loss counts labels, GHM and EQL v2 average over past batches, in buffers;
    DDOD counts positives in a list; Dynamic R-CNN keeps lists from which it moves the
    thresholds of its assigner and loss. An attack asks for many losses, which must not
    depend on each other nor leave anything behind. Normalisations are left out: eval
    mode already stops theirs.

    Args:
        model: its state is copied now and put back by :meth:`restore`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            if not isinstance(module, nn.modules.batchnorm._NormBase)
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self._numbers = [
            (vars(owner), name, value if _is_number(value) else list(value))
            for owner in _owners(model)
            for name, value in vars(owner).items()
            if _is_number(value)
            or (isinstance(value, list) and all(map(_is_number, value)))
        ]

    def restore(self) -> None:
        """Puts everything back in place, as often as wanted."""
        for module, name, buffer, value in self._buffers:
            # Some losses bind a new tensor instead of writing into the old one.
            module._buffers[name] = buffer
            with torch.no_grad():
                buffer.copy_(value)
        for attributes, name, number in self._numbers:
            attributes[name] = number if _is_number(number) else list(number)


def _owners(model: nn.Module) -> Iterator[Any]:
    """The modules that may count something, and their assigners."""
    for module in model.modules():
        if not type(module).__module__.startswith(_LAYERS):
            yield module
            yield from (v for v in vars(module).values() if hasattr(v, 'assign'))


def _is_number(value: Any) -> bool:
    # Not bool: those are switches like ``training``.
    return type(value) in (int, float)
