"""The network inside its distributed wrapper, a hash of its state, shadowed methods."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn


def bare_model(model: nn.Module) -> Any:
    """The detector inside its distributed wrapper, if there is one."""
    return model.module if is_model_wrapper(model) else model


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the model's weights; of one without any the CPU."""
    weights = bare_model(model).parameters()
    return next((weight.device for weight in weights), torch.device('cpu'))


def state_digest(module: nn.Module, without: Sequence[str] = ()) -> str:
    """SHA-256 of all parameters and buffers, bit by bit, with their names.

    Args:
        module: the module.
        without: regular expressions of names that are left out.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if any(re.match(pattern, name) for pattern in without):
            continue
        if not isinstance(value, Tensor):  # a module's extra state
            continue
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        # A copy: FSDP cannot let go of memory that numpy has seen.
        flat = value.detach().to('cpu', copy=True).contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Shadows a method or attribute of one object while the context lasts.

    A module whose ``forward`` is replaced this way keeps the names of its weights, as a
    new module around it would not.
    """
    own = vars(owner)
    shadowed, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if shadowed:
            own[name] = before
        else:
            del own[name]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode without weight gradients; all flags return after."""
    modes = [(module, module.training) for module in model.modules()]
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    # A network of many small parts feels each call, and every attacked image pays.
    if any(training for _, training in modes):
        model.eval()
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
        for weight in learning:
            weight.requires_grad_(True)
