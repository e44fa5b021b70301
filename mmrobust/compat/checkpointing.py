"""Gradient checkpointing (``with_cp``) where only some gradients are asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.utils import checkpoint as module


@contextmanager
def checkpoints_give_input_gradients() -> Iterator[None]:
    """Lets ``torch.autograd.grad`` go through the checkpoints of a model.

    mmdet and mmpretrain call ``torch.utils.checkpoint.checkpoint`` without saying
    which of its two variants they mean. The default is the reentrant one, which
    refuses every backward pass that does not accumulate into all leaves. Inside the
    context it is the other one, whose values and gradients are the same. Of fairscale
    (CO-DETR's ``with_cp``) there is the reentrant one alone: inside, nothing is
    checkpointed by it, at the cost of the memory that it would save.
    """
    original = module.checkpoint

    def checkpoint(function: Any, *args: Any, **kwargs: Any) -> Any:
        return original(function, *args, **{**kwargs, 'use_reentrant': False})

    fairscale = sys.modules.get('fairscale.nn.checkpoint.checkpoint_activations')
    module.checkpoint = checkpoint  # type: ignore[assignment]
    try:
        with getattr(fairscale, 'disable_checkpointing', nullcontext)():
            yield
    finally:
        module.checkpoint = original
