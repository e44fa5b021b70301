"""Random numbers that depend on the image or the update, not on the order of work."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch


def derive_seed(*parts: object) -> int:
    """Derives a seed in [0, 2**63) from printable parts, the same everywhere."""
    text = '/'.join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') >> 1


def attack_generator(seed: int) -> torch.Generator:
    """Makes a CPU generator for the attack's own draws on an image."""
    return torch.Generator().manual_seed(derive_seed(seed, 'attack'))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch, numpy and random inside the context and restores them after it.

    mmdet's samplers draw from the global generators, so an attack on Faster R-CNN is
    only repeatable, and only independent of world size and image order, when they
    start from a seed of the image.

    Args:
        seed: non-negative seed.
        device: device whose generator is seeded beside the CPU's.
    """
    with undrawn(device):
        # torch.manual_seed alone would also seed GPUs that are not put back.
        cuda = device.type == 'cuda'
        (torch if cuda else torch.default_generator).manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@contextmanager
def undrawn(device: torch.device | None = None) -> Iterator[None]:
    """Takes back, after the context, what it drew from torch, numpy and random.

    Args:
        device: device whose generator counts beside the CPU's.
    """
    take_back = mark_draws(device)
    try:
        yield
    finally:
        take_back()


def mark_draws(device: torch.device | None = None) -> Callable[[], None]:
    """Returns a function that takes back what is drawn from now on until its call.

    Args:
        device: see :func:`undrawn`.
    """
    device = device or torch.device('cpu')
    return partial(_set_states, _states(device), device)


class Draws:
    """Global random draws of one image's own, whatever is drawn in between.

    Args:
        seed: where they start, as :func:`seeded` does.
        device: device whose generator counts beside the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        with seeded(seed, device):
            self._state = _states(device)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Goes on where the last context ended; the draws outside stay as they are."""
        outside = _states(self.device)
        _set_states(self._state, self.device)
        try:
            yield
        finally:
            self._state = _states(self.device)
            _set_states(outside, self.device)


def _states(device: torch.device) -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state(device) if device.type == 'cuda' else None
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()


def _set_states(states: tuple[Any, ...], device: torch.device) -> None:
    cpu, cuda, numpy, python = states
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
    np.random.set_state(numpy)
    random.setstate(python)


def generator_states() -> dict[str, Any]:
    """Returns the states of the generators of torch (CPU, current GPU), numpy, Python.

    Tensors and numbers only, so that a checkpoint with them loads without pickled code.
    """
    cuda = torch.cuda.is_available()
    cpu, gpu, numpy, python = _states(torch.device('cuda' if cuda else 'cpu'))
    _, words, position, has_spare, spare = numpy
    _, numbers, python_spare = python
    states = {
        'torch': cpu,
        'numpy': torch.from_numpy(words.astype(np.int64)),
        'numpy_rest': [int(position), int(has_spare), float(spare)],
        'python': torch.tensor(numbers),
        'python_spare': python_spare,
    }
    return {**states, 'cuda': gpu} if cuda else states


def set_generator_states(states: dict[str, Any]) -> None:
    """Puts back what :func:`generator_states` gave, from any device."""
    words = states['numpy'].cpu().numpy().astype(np.uint32)
    numpy = ('MT19937', words, *states['numpy_rest'])
    python = (3, tuple(states['python'].tolist()), states['python_spare'])
    gpu = (
        states['cuda'].cpu() if 'cuda' in states and torch.cuda.is_available() else None
    )
    _set_states((states['torch'].cpu(), gpu, numpy, python), torch.device('cuda'))
