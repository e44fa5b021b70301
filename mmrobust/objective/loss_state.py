"""What a model's losses remember between calls, and how to make them forget it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

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
        normalisations: include them, for a model in training mode.
    """

    def __init__(self, model: nn.Module, normalisations: bool = False) -> None:
        self._model = model
        self._buffers = [
            _Buffer(module, name, buffer)
            for module in model.modules()
            if normalisations or not isinstance(module, nn.modules.batchnorm._NormBase)
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self._read_numbers()

    def _read_numbers(self) -> None:
        self._numbers: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._lists: list[tuple[dict[str, Any], str, list[Any]]] = []
        for owner in _owners(self._model):
            own = vars(owner)
            numbers = {name: value for name, value in own.items() if _is_number(value)}
            if numbers:
                self._numbers.append((own, numbers))
            self._lists += [
                (own, name, list(value))
                for name, value in own.items()
                if isinstance(value, list) and all(map(_is_number, value))
            ]

    def refresh(self) -> None:
        """Takes what is remembered now for what :meth:`restore` puts back."""
        for buffer in self._buffers:
            buffer.refresh()
        self._read_numbers()

    def restore(self, thorough: bool = False) -> None:
        """Puts everything back in place, as often as wanted.

        Args:
            thorough: copy every buffer. Otherwise only those that torch says were
                written to, which it does not say of writing through ``.data``.
        """
        for buffer in self._buffers:
            buffer.restore(thorough)
        for own, numbers in self._numbers:
            own.update(numbers)
        for own, name, value in self._lists:
            own[name] = list(value)


class _Buffer:
    """A buffer and its value."""

    def __init__(self, module: nn.Module, name: str, buffer: Tensor) -> None:
        self.module, self.name, self.buffer = module, name, buffer
        self.value = buffer.clone()
        self.version = _version(buffer)

    def refresh(self) -> None:
        now = self.module._buffers[self.name]
        if now is not self.buffer:
            assert now is not None
            self.buffer, self.value = now, now.clone()
        # torch does not count what normalisations write, in training mode.
        elif self.module.training or _version(now) != self.version:
            with torch.no_grad():
                self.value.copy_(now)
        self.version = _version(now)

    def restore(self, thorough: bool) -> None:
        # Some losses bind a new tensor instead of writing into the old one.
        self.module._buffers[self.name] = self.buffer
        version = _version(self.buffer)
        if thorough or version is None or version != self.version:
            with torch.no_grad():
                self.buffer.copy_(self.value)
            self.version = _version(self.buffer)


def _version(buffer: Tensor) -> int | None:
    """How often torch saw the buffer being written to; None if it does not count."""
    return None if buffer.is_inference() else buffer._version


def _owners(model: nn.Module) -> Iterator[Any]:
    """The modules that may count something, and their assigners."""
    for module in model.modules():
        if not type(module).__module__.startswith(_LAYERS):
            yield module
            yield from (v for v in vars(module).values() if hasattr(v, 'assign'))


def _is_number(value: Any) -> bool:
    # Not bool: those are switches like ``training``.
    return type(value) in (int, float)
