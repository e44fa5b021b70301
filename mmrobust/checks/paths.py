"""Compares the network that the loss sees with the one that predictions come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Share of its length by which a tensor may differ: of an input, 1 % is about half a
# pixel unit, as rounding to 8 bits; of features, what half precision makes of them.
INPUT_SHARE = 0.01
FEATURE_SHARE = 0.05

# What one call of a part was given, or gave.
_Tensors = list[Tensor]


def path_difference(
    model: nn.Module, ask: Callable[[], Any], predict: Callable[[], Any]
) -> str:
    """Says what sets prediction apart from the loss, on one image.

    Looked at is what goes into the backbone, what the neck gives, what goes into heads
    that get just this in the loss, and which modules with weights run at all. What
    comes out of heads may differ (mmdet's often do), and so may what only losses run.

    Args:
        model: the bare detector; what is not called as mmdet's are is passed over.
        ask: asks for the loss of an image.
        predict: predicts on the same image, under the same seed.

    Returns:
        What prediction does, to be read behind "prediction differs from the loss: ";
        empty if nothing was found.
    """
    loss, prediction = _Path(model), _Path(model)
    for path, call in ((loss, ask), (prediction, predict)):
        with path.hooks, torch.no_grad():
            path.watch()
            call()
    if text := _unlike(loss.inputs, prediction.inputs, INPUT_SHARE):
        return f'its backbone gets {text}'
    if text := _unlike(loss.features, prediction.features, FEATURE_SHARE):
        return f'its heads get {text} from backbone and neck'
    for name, given in loss.heads.items():
        if any(_unlike(loss.features, [each], FEATURE_SHARE) for each in given):
            continue  # it gets something else, or more
        if text := _unlike(given, prediction.heads.get(name, []), FEATURE_SHARE):
            return f'its {name} gets {text}'
    # Only where something of both was seen is what was not seen worth a word.
    if loss.inputs and (more := sorted(prediction.ran - loss.ran)):
        return f'it runs {more[0]}, which the loss does not'
    return ''


class _Path:
    """What goes through a model's parts in one call."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.hooks = ExitStack()
        self.inputs: list[_Tensors] = []
        self.features: list[_Tensors] = []
        self.heads: dict[str, list[_Tensors]] = {}
        self.ran: set[str] = set()

    def watch(self) -> None:
        parts = dict(self.model.named_children())
        for name, module in self.model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                self._before(module, partial(self._note, name))
        if (backbone := parts.get('backbone')) is None:
            return
        self._before(backbone, self.inputs.append)
        last = parts.get('neck') or backbone
        hook = last.register_forward_hook(
            lambda module, args, out: self.features.append(list(_tensors(out)))
        )
        self.hooks.callback(hook.remove)
        for name, part in parts.items():
            if name.endswith('head'):
                self._before(part, self.heads.setdefault(name, []).append)

    def _note(self, name: str, given: _Tensors) -> None:
        self.ran.add(name)

    def _before(self, module: nn.Module, see: Callable[[_Tensors], Any]) -> None:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            see(list(_tensors([*args, *kwargs.values()])))

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        self.hooks.callback(handle.remove)


def _unlike(known: list[_Tensors], found: list[_Tensors], share: float) -> str:
    """Says how a call of prediction differs from all of the loss's, if one does."""
    for tensors in found if known else ():
        shapes = [[tuple(t.shape) for t in each] for each in known]
        own = [tuple(t.shape) for t in tensors]
        alike = [each for each, size in zip(known, shapes, strict=True) if size == own]
        if not alike:
            return f'another shape ({_named(own)} in place of {_named(shapes[0])})'
        nearest = min(_distance(each, tensors) for each in alike)
        if not nearest <= share:
            return f'other values (by {nearest:.0%} of their size)'
    return ''


def _named(shapes: list[tuple[int, ...]]) -> str:
    return 'x'.join(map(str, shapes[0])) if shapes else 'nothing'


def _distance(known: _Tensors, found: _Tensors) -> float:
    pairs = zip(known, found, strict=True)
    apart = sum(float((a.float() - b.float()).square().sum()) for a, b in pairs)
    size = sum(float(a.float().square().sum()) for a in known)
    return (apart / size) ** 0.5 if size else float(apart > 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
