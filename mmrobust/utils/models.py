"""The network inside its distributed wrapper: where it is, and a hash of its state."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn


def bare_model(model: nn.Module) -> Any:
    """The detector inside its distributed wrapper, if there is one."""
    return model.module if is_model_wrapper(model) else model


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(bare_model(model).parameters()).device


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
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
