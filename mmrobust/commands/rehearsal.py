"""Measures the first updates of a training: passes, operations, memory and seconds.

A few updates are made, on parts of the batch where it is large, and the training ends.
Memory and operations of the whole batch follow on a line through those of two sizes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..utils.measuring import Passes, PeakMemory, counts_operations, size_of
from ..utils.models import bare_model

# So many images have their memory measured; a BatchNorm needs two.
_SIZES = (2, 4)
# Updates that are made at most.
UPDATES = len(_SIZES) + 2
# On a CPU, where nothing else says when it is too long.
_MOST_SECONDS = 60.0


class RehearsedError(Exception):
    """Ends a training whose updates have been measured; no error."""


@dataclass
class Measured:
    """What an update takes, of the whole batch of one process.

    Attributes:
        batch: images of a batch.
        shapes: (height, width) of images that the data loader gave.
        measured: images that an update's memory was measured with at most; below
            ``batch``, memory and operations are carried on from there.
        timed: images that the seconds were measured with.
        forward: passes through the backbone, or through the model without one.
        backward: likewise.
        operations: of convolutions and matrix products, multiplications and additions
            counted one each.
        parts: bytes that stay, by what they are for.
        peak: bytes that an update takes at most beyond these.
        allocated: bytes that tensors took at most on a GPU in an update of ``timed``
            images, all in all; None on a CPU.
        seconds: of an update, from images in memory to averaged weights.
        loading: seconds in which one process loads and augments a batch.
    """

    batch: int = 0
    shapes: set[tuple[int, int]] = field(default_factory=set)
    measured: int = 0
    timed: int = 0
    forward: int = 0
    backward: int = 0
    operations: float = 0.0
    parts: dict[str, int] = field(default_factory=dict)
    peak: float = 0.0
    allocated: int | None = None
    seconds: float = 0.0
    loading: float = 0.0


class RehearsalHook(Hook):
    """Measures updates, one after the other, and ends the training.

    The first one counts passes and operations, the next ones measure memory, the last
    one seconds with all images, if memory and time allow it.
    """

    priority = 'VERY_LOW'  # the moving average belongs to an update

    def __init__(self) -> None:
        self.found = Measured()
        self.measuring = ExitStack()  # open during an update
        self._updates = 0
        self._peaks: dict[int, int] = {}
        self._loads = time.perf_counter()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Takes a part of the batch and begins to measure."""
        found, first = self.found, self._updates == 0
        now = time.perf_counter()
        if first:
            found.batch = len(data_batch['inputs'])
            found.shapes = {tuple(i.shape[-2:]) for i in data_batch['inputs']}
            self._sizes = sorted({min(size, found.batch) for size in _SIZES})
            # What is made once for all, a state of the optimizer say, is there then.
            self._plan = [
                ('count', self._sizes[0]),
                *(('memory', size) for size in self._sizes),
                ('time', found.batch),
            ]
        found.loading = now - self._loads
        self._stage, self._size = self._plan[self._updates]
        for key in ('inputs', 'data_samples'):
            data_batch[key] = data_batch[key][: self._size]
        self._device = torch.device(get_device())
        model = bare_model(runner.model)
        if self._stage == 'count':
            self._passes = Passes(getattr(model, 'backbone', model))
            self._flops = self.measuring.enter_context(counts_operations())
        elif self._stage == 'memory':
            for weight in model.parameters():
                if weight.requires_grad:
                    # They are known; what else there is follows a line.
                    weight.grad = torch.zeros_like(weight)
            self._memory = self.measuring.enter_context(PeakMemory(self._device))
        elif self._device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self._device)
        self._started = self._now()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Notes what was found, and ends the training after the last update."""
        found, seconds = self.found, self._now() - self._started
        self.measuring.close()
        share = found.batch / self._size
        if self._stage == 'count':
            self._passes.close()
            found.forward, found.backward = self._passes.forward, self._passes.backward
            found.operations = self._flops.get_total_flops() * share
        elif self._stage == 'memory':
            self._peaks[self._size] = self._memory.bytes
            found.timed, found.seconds = self._size, seconds * share
            found.measured, found.peak = self._size, self._on_a_line(found.batch)
            found.parts = _parts(runner)
        else:
            found.timed, found.seconds = self._size, seconds * share
            if self._device.type == 'cuda':
                found.allocated = torch.cuda.max_memory_allocated(self._device)
        self._updates += 1
        self._loads = time.perf_counter()
        left = len(self._plan) - self._updates
        if left == 0 or (left == 1 and not self._fits()):
            raise RehearsedError

    def _fits(self) -> bool:
        """Whether an update of the whole batch can be made here, going by its size."""
        found = self.found
        needed = found.peak + (found.parts['gradients'] if found.parts else 0)
        if self._device.type == 'cuda':
            free, _ = torch.cuda.mem_get_info(self._device)
            return needed < 0.9 * free
        return needed < 0.7 * _available() and found.seconds < _MOST_SECONDS

    def _on_a_line(self, images: int) -> float:
        sizes = sorted(self._peaks)
        low, high = sizes[0], sizes[-1]
        if low == high:
            return self._peaks[low] * images / low
        slope = (self._peaks[high] - self._peaks[low]) / (high - low)
        return self._peaks[high] + max(slope, 0.0) * (images - high)

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _parts(runner: Runner) -> dict[str, int]:
    """Bytes that stay from update to update, and the gradients."""
    model, wrapper = bare_model(runner.model), runner.optim_wrapper
    # Of several optimizers, or the only one.
    wrappers = list(wrapper.values()) if hasattr(wrapper, 'values') else [wrapper]
    states = [s for w in wrappers for s in w.optimizer.state.values()]
    learnt = [p for p in model.parameters() if p.requires_grad]
    averages = [h.ema_model for h in runner.hooks if hasattr(h, 'ema_model')]
    return {
        'weights': size_of([*model.parameters(), *model.buffers()]),
        'gradients': sum(p.numel() * p.element_size() for p in learnt),
        'optimizer': size_of(value for state in states for value in state.values()),
        'moving average': size_of(
            tensor for average in averages for tensor in average.state_dict().values()
        ),
    }


def _available() -> float:
    """Bytes of memory that this machine has left; all of it where that is unknown."""
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            lines = dict(line.split(':') for line in file)
        return 1024.0 * int(lines['MemAvailable'].split()[0])
    except (OSError, KeyError, ValueError):
        return float('inf')
