"""A process that computes by itself although it is one of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed


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
