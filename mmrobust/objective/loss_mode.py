"""Computes training losses of the deployed function, and leaves no trace of it.

:func:`loss_mode` sets the flags that losses depend on; :class:`LossState` restores what
some losses remember between calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..compat.checkpointing import checkpoints_give_input_gradients
from ..utils.models import frozen

# Beside detectors and heads: where mmdet asks for ``self.training`` for anything else
# than dropout. In an older or newer mmdet some may be missing.
_ALSO_READ_IT = (
    ('mmdet.models.backbones.trident_resnet', 'TridentBottleneck'),
    ('mmdet.models.backbones.trident_resnet', 'TridentConv'),
    ('mmdet.models.layers.transformer.ddq_detr_layers', 'DDQTransformerDecoder'),
    ('mmdet.models.roi_heads.mask_heads.grid_head', 'GridHead'),
)


def _reads_training_flag() -> tuple[type, ...]:
    """Returns classes whose own ``training`` flag decides how losses are computed."""
    try:
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.dense_heads.base_mask_head import BaseMaskHead
        from mmdet.models.dense_heads.detr_head import DETRHead
        from mmdet.models.detectors.base import BaseDetector
        from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
    except ImportError:  # a classifier without mmdet installed
        return ()
    heads = [BaseDetector, BaseDenseHead, BaseMaskHead, DETRHead, BaseRoIHead]
    for module, name in _ALSO_READ_IT:
        with suppress(ImportError, AttributeError):
            heads.append(getattr(import_module(module), name))
    return tuple(heads)


@contextmanager
def loss_mode(model: nn.Module) -> Iterator[None]:
    """Makes the model compute its training loss as the function that is deployed.

    Everything is in eval mode (BatchNorm statistics stay, no dropout, also none inside
    ``nn.MultiheadAttention``), but the ``training`` flag of the detector and its heads
    is set, each by itself: FCOS with norm_on_bbox, VFNet, RepPoints, Deformable DETR
    and DINO give wrong losses or none without it. Weights are frozen, so a backward
    pass reaches the image only, also where the model checkpoints its activations. All
    flags are restored on exit, and so is what losses remember between calls (the counts
    of Seesaw loss, the history of Dynamic R-CNN).

    Args:
        model: the bare detector, not a distributed wrapper.
    """
    state = LossState(model)
    try:
        with frozen(model), checkpoints_give_input_gradients():
            heads = _reads_training_flag()
            for module in model.modules():
                if isinstance(module, heads):
                    module.training = True
            yield
    finally:
        state.restore(thorough=True)


# Modules of these packages keep no count of losses outside of buffers.
_LAYERS = ('torch.', 'mmcv.', 'mmengine.')


class LossState:
    """A snapshot of what a model's modules remember from one loss to the next.

    Seesaw loss counts labels, GHM and EQL v2 average over past batches, in buffers;
    DDOD counts positives in a list; Dynamic R-CNN keeps lists from which it moves the
    thresholds of its assigner and loss. Losses of an attack must not depend on each
    other nor leave anything behind. Eval mode already stops normalisations.

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
        """Takes a new snapshot, which :meth:`restore` puts back from now on."""
        for buffer in self._buffers:
            buffer.refresh()
        self._read_numbers()

    def restore(self, thorough: bool = False) -> None:
        """Puts the snapshot back in place, as often as wanted.

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
    """A buffer and its value in the snapshot."""

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
    """Returns how often torch saw the buffer being written to; None if unknown."""
    return None if buffer.is_inference() else buffer._version


def _owners(model: nn.Module) -> Iterator[Any]:
    """Yields the modules that may count something, and their assigners."""
    for module in model.modules():
        if not type(module).__module__.startswith(_LAYERS):
            yield module
            yield from (v for v in vars(module).values() if hasattr(v, 'assign'))


def _is_number(value: Any) -> bool:
    # Not bool: those are switches like ``training``.
    return type(value) in (int, float)
