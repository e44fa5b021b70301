"""A process of several computes by itself, and with the same model as the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.dist import broadcast, get_world_size
from torch import distributed, nn


@contextmanager
def alone() -> Iterator[None]:
    """Hides the other processes from the model.

    Heads of mmdet average the number of objects over all processes
    (``reduce_mean``). In training that is right. In an evaluation it would couple an
    image's loss to the images of other processes, and all of them would have to ask
    for as many losses, which attacks that stop early do not.
    """
    if not distributed.is_available():
        yield
        return
    is_initialized = distributed.is_initialized
    distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        distributed.is_initialized = is_initialized


@contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, all processes have the buffers of the first one, which are those saved.

    In training each one has BatchNorm statistics of its own, unless mmengine's
    SyncBuffersHook is among the hooks, and what they would evaluate is no one model.
    """
    if get_world_size() == 1:
        yield
        return
    own = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for buffer, _ in own:
        broadcast(buffer)
    try:
        yield
    finally:
        for buffer, value in own:
            buffer.copy_(value)
