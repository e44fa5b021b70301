"""Peak memory of updates and attacks.

Counted is what tensors take beyond what is there before: weights, optimizer state and
the batch. Gradients of the weights belong to the peak of an update.

On a GPU PyTorch's allocator keeps the peak. On a CPU its profiler records every
allocation and every release of tensor memory, operators' scratch tensors included, from
which the peak follows exactly; the resident size of the process would add what the
C library keeps for later, and would differ from run to run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable

import torch
from mmrobust.objective import loss_mode
from torch.profiler import ProfilerActivity, profile

from benchmarks.attack import attack_sides
from benchmarks.subject import Subject
from benchmarks.table import Table
from benchmarks.timing import Clock, Side, possible
from benchmarks.training import STOCK, free_sides, inner_sides

# Whose updates are worth a row here.
_INNER = 'update of PGD-AT'


def memory_sections(subject: Subject, clock: Clock, repeats: int) -> list[Table]:
    """Peaks of updates and of attacks, beside the stock update's.

    Attacks see as many images at once as an evaluation shows them: of a detector one.
    """
    updates = free_sides(subject)
    updates += [s for s in inner_sides(subject) if s.name.startswith(_INNER)]
    peaks, notes = _peaks(subject, updates)
    stock = peaks[STOCK]
    with loss_mode(subject.model):
        attacks, more = _peaks(subject, attack_sides(subject))
    rows = [
        {'what': name, 'mebibytes': peak / 2**20, 'ratio': peak / stock}
        for name, peak in {**peaks, **attacks}.items()
    ]
    columns = {'what': 'what', 'mebibytes': 'MiB', 'ratio': f'ratio to {STOCK}'}
    title = 'Peak memory beyond weights, optimizer state and batch'
    return [Table(title, columns, rows, notes + more)]


def _peaks(subject: Subject, sides: list[Side]) -> tuple[dict[str, int], list[str]]:
    # Having run once they have made what lasts: momenta, perturbations.
    sides, notes = possible(sides)
    peaks = {}
    for side in sides:
        subject.model.zero_grad(set_to_none=True)
        peaks[side.name] = peak_bytes(side.run, subject.device)
    return peaks, notes


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors made in a call take at once.

    Args:
        run: what is measured.
        device: whose memory; a GPU or the CPU.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'trace.json')
        profiler.export_chrome_trace(path)
        with open(path, encoding='utf-8') as file:
            events = json.load(file)['traceEvents']
    changes = [
        (event['ts'], event['args']['Bytes'])
        for event in events
        if event.get('name') == '[memory]'
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        peak = max(peak, held)
    return peak
