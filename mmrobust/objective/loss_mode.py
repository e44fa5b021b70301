"""Computes training losses of the deployed function, and leaves no trace of it.

:func:`loss_mode` sets the flags that losses depend on; :class:`LossState` restores what
some losses remember between calls.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from types import CodeType
from typing import Any

import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn

from ..compat.checkpointing import checkpoints_give_input_gradients
from ..utils.models import frozen
from .texts import prompted_as_deployed

# Parts of the names that code uses which draws noise, or normalises by statistics of a
# batch: torch's functions, and how implementations call their settings.
_NOISE = ('drop', 'stochastic', 'rand', 'bernoulli', 'rrelu')
_STATISTICS = ('batch_norm', 'running_')


def is_classifier(model: nn.Module) -> bool:
    """Returns whether the bare model is one of mmpretrain's classifiers."""
    # No import: whoever built such a model has made it.
    module = sys.modules.get('mmpretrain.models.classifiers.base')
    return module is not None and isinstance(model, module.BaseClassifier)


def _code(function: Any) -> Iterator[CodeType]:
    """Yields the code of a method or property, and of functions inside it."""
    function = getattr(function, 'fget', getattr(function, '__func__', function))
    code = getattr(inspect.unwrap(function), '__code__', None)
    left = [code] if code is not None else []
    while left:
        yield (code := left.pop())
        left += [c for c in code.co_consts if isinstance(c, CodeType)]


def _is_noise(code: CodeType) -> bool:
    """Tells whether a function asks for the flag to draw noise or to normalise.

    One that returns now so many things and now another number of them decides on
    outputs too, which counts for more.
    """
    steps = pairwise(dis.get_instructions(code))
    returned = {
        (last.opname, last.arg) if last.opname.startswith('BUILD') else None
        for last, step in steps
        if step.opname == 'RETURN_VALUE'
    }
    names = ' '.join((*code.co_names, *code.co_varnames)).lower()
    return len(returned) < 2 and any(word in names for word in _NOISE + _STATISTICS)


@cache
def stays_in_eval(kind: Any) -> bool:
    """Tells whether the ``training`` flag of a class is for noise or statistics alone.

    Told by its code, whoever wrote it: it is, if every function of the class that asks
    for the flag is one that draws noise (dropout, stochastic depth) or normalises by
    the batch, and of all of torch's own modules. A class may say so itself, by
    ``attacked_in_eval = True``.

    Args:
        kind: class of a module.
    """
    if kind.__module__.startswith('torch.') or getattr(kind, 'attacked_in_eval', False):
        return True
    asking = [
        _is_noise(code)
        for base in kind.__mro__
        if base not in (nn.Module, object)
        for function in vars(base).values()
        for code in _code(function)
        if 'training' in code.co_names
    ]
    return bool(asking) and all(asking)


# An epoch, or an update, that no warm-up of a loss lasts to.
_LATE = 1_000_000


@contextmanager
def loss_mode(model: nn.Module) -> Iterator[None]:
    """Makes the model compute its training loss as the function that is deployed.

    BatchNorm's statistics stay and nothing is dropped, since modules for which the flag
    means that are in eval mode (:func:`stays_in_eval`). The ``training`` flag of all
    others is set, each by itself: FCOS with norm_on_bbox, VFNet, RepPoints, Deformable
    DETR, DINO and many detectors of other projects give wrong losses or none without
    it. What is in eval mode in training too (a teacher) stays in it, and so does a
    whole classifier, which has no such losses. Weights are frozen, so a backward pass
    reaches the image only, also where the model checkpoints its activations. All flags
    are restored on exit, and so is what losses remember between calls (the counts of
    Seesaw loss, the history of Dynamic R-CNN).

    Args:
        model: the bare detector, not a distributed wrapper.
    """
    state = LossState(model)
    # In training the text of a batch is that of its own loss.
    prompts = nullcontext() if model.training else prompted_as_deployed(model)
    modules = [] if is_classifier(model) else list(model.modules())
    asked = [m for m in modules if m.training or not model.training]
    try:
        late = _late_in_training()
        with frozen(model), checkpoints_give_input_gradients(), late, prompts:
            for module in asked:
                kind: Any = type(module)
                asks = not stays_in_eval(kind)
                if module.training != asks:
                    module.training = asks
            yield
    finally:
        state.restore(thorough=True)


@contextmanager
def _late_in_training() -> Iterator[None]:
    """Says, outside of training, that it is long over, to losses that ask for that.

    TOOD, BoxInst and others read the epoch or the iteration from mmengine's message
    hub, and begin with another assigner or weight. A test knows of neither.
    """
    hub = MessageHub.get_current_instance()
    missing = [name for name in ('epoch', 'iter') if hub.get_info(name) is None]
    for name in missing:
        hub.update_info(name, _LATE)
    try:
        yield
    finally:
        for name in missing:
            hub.runtime_info.pop(name)


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
