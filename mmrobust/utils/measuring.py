"""Measures peak memory of tensors, and counts passes and operations of a network."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


class PeakMemory:
    """Measures the most memory that tensors made inside the context take at once.

    On a GPU PyTorch's allocator keeps the peak. On a CPU its profiler records every
    allocation and release of tensor memory, operators' scratch tensors included, from
    which the peak follows exactly; the resident size of the process would add what the
    C library keeps for later, and would differ from run to run.

    Args:
        device: whose memory; a GPU or the CPU.

    Attributes:
        bytes: the peak beyond what was there before; after the context.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._profiler = profile(
                activities=[ProfilerActivity.CPU], profile_memory=True
            )
            self._profiler.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self._profiler.__exit__(*args)
            self.bytes = _peak(self._profiler)


def _peak(profiler: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'trace.json')
        profiler.export_chrome_trace(path)
        with open(path, encoding='utf-8') as file:
            events = json.load(file)['traceEvents']
    memory = [event for event in events if event.get('name') == '[memory]']
    held = peak = 0
    for event in sorted(memory, key=lambda each: each['ts']):
        held += event['args']['Bytes']
        peak = max(peak, held)
    return peak


def size_of(tensors: Iterable[Any]) -> int:
    """Returns the bytes that tensors take, memory that they share counted once."""
    storages = [t.untyped_storage() for t in tensors if isinstance(t, Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


class _Everywhere:
    """Finds no module of an operation: what does refuses gradients of the input."""

    parents = ('Global',)

    def __enter__(self) -> None: ...

    def __exit__(self, *args: Any) -> None: ...


def counts_operations() -> FlopCounterMode:
    """Makes a context that counts operations of convolutions and matrix products.

    ``get_total_flops()`` is the number, multiplications and additions counted one each.
    PyTorch's own count of the backward pass of grouped convolutions is too large, by
    up to the number of groups; here it is that of the forward pass for each gradient.
    """
    convolution = torch.ops.aten.convolution_backward
    counter = FlopCounterMode(
        display=False, custom_mapping={convolution: _convolution_backward}
    )
    counter.mod_tracker = _Everywhere()  # type: ignore[assignment]
    return counter


def _convolution_backward(
    gradient: Tensor, image: Tensor, weight: Tensor, *args: Any, **kwargs: Any
) -> int:
    transposed, mask = args[4], args[7]
    places = image if transposed else gradient
    return 2 * places.numel() * weight[0].numel() * sum(mask[:2])


_convolution_backward._get_raw = True  # type: ignore[attr-defined]  # not shapes


class Passes:
    """Counts forward and backward passes through a module while it is watched.

    Args:
        module: returns tensors, alone or in tuples, lists and dicts. What gradient
            checkpointing computes again inside it does not count.

    Attributes:
        forward: passes with and without a gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        self.forward = 0
        # Per forward pass, how often a gradient came to each of its outputs.
        self._arrived: list[list[int]] = []
        self._handle = module.register_forward_hook(self._count)

    @property
    def backward(self) -> int:
        """Backward passes; a part of the network may use only some of the outputs."""
        return sum(max(arrived, default=0) for arrived in self._arrived)

    def close(self) -> None:
        """Stops watching."""
        self._handle.remove()

    def _count(self, module: nn.Module, args: Any, output: Any) -> None:
        self.forward += 1
        tensors = [t for t in _tensors(output) if t.requires_grad]
        arrived = [0] * len(tensors)
        self._arrived.append(arrived)

        def note(index: int) -> None:
            arrived[index] += 1

        for index, tensor in enumerate(tensors):
            tensor.register_hook(lambda gradient, index=index: note(index))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
