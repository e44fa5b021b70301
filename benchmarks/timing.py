"""Times of things that are to be compared, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from mmrobust.errors import ConfigError

from benchmarks.table import Table


@dataclass(frozen=True)
class Side:
    """One of several things that are compared.

    Attributes:
        name: what it is.
        run: does it.
        images: that a run works on.
        steps: how many of what the name says a run makes; figures are for one.
        passes: name of the side that makes the passes alone that this one cannot do
            without.
        limit: of the ratio to those.
        base_limit: of the ratio to the first side. Where those passes alone are above
            it, ``limit`` holds instead.
    """

    name: str
    run: Callable[[], object]
    images: int
    steps: int = 1
    passes: str | None = None
    limit: float | None = None
    base_limit: float | None = None


class Clock:
    """Seconds on a device.

    Args:
        device: where the work is done; a GPU is waited for.
        kind: ``'wall'``, or ``'cpu'`` for this process's own time on all cores, which
            other programs on the machine change little.

    Raises:
        ConfigError: for ``'cpu'`` on another device, whose work it does not count.
    """

    def __init__(self, device: torch.device | str, kind: str = 'wall') -> None:
        self.device, self.kind = torch.device(device), kind
        if kind == 'cpu' and self.device.type != 'cpu':
            raise ConfigError(
                f'the clock cpu counts no work on {device}: take --clock wall.'
            )

    def seconds(self, run: Callable[[], object]) -> float:
        """How long a call takes."""
        started = self._now()
        run()
        return self._now() - started

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.kind == 'cpu' else time.perf_counter()


def alternate(
    sides: Sequence[Side], clock: Clock, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every side by name, in turns; each has run before, to warm up.

    A machine whose speed drifts so slows all of them, and as every other turn goes
    backwards, none always follows the same one.
    """
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(repeats):
        for side in sides if turn % 2 == 0 else reversed(sides):
            seconds[side.name].append(clock.seconds(side.run) / side.steps)
    return seconds


def compare(
    title: str,
    sides: Sequence[Side],
    clock: Clock,
    repeats: int,
    around: Callable[[], AbstractContextManager] = nullcontext,
) -> Table:
    """Measures sides and puts them beside the first one and beside their passes.

    Args:
        title: of the table.
        sides: what is compared. One that the model is not for, as its ConfigError
            says, is left out with a note.
        clock: measures.
        repeats: how often each is measured.
        around: a context in which all of them run.
    """
    with around():
        sides, notes = possible(sides)
        seconds = alternate(sides, clock, repeats)
    rows = [_row(side, sides[0].name, seconds) for side in sides]
    columns = {
        'what': 'what',
        'milliseconds': 'ms',
        'images_per_second': 'images/s',
        'ratio': f'ratio to {sides[0].name}',
        'ratio_to_passes': 'ratio to its passes',
        'verdict': 'limit',
    }
    return Table(title, columns, rows, notes)


def possible(sides: Sequence[Side]) -> tuple[list[Side], list[str]]:
    """Runs every side once; those that the model is for, and a note on each other."""
    left, notes = [], []
    for side in sides:
        try:
            side.run()
        except ConfigError as error:
            notes.append(f'Without {side.name}: {error}')
        else:
            left.append(side)
    return left, notes


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median of the ratios within each turn."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def _row(side: Side, base: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    own = seconds[side.name]
    median = statistics.median(own)
    row: dict[str, Any] = {
        'what': side.name,
        'milliseconds': 1000 * median,
        'images_per_second': side.images / median,
        'ratio': ratio(own, seconds[base]),
        'seconds': own,
    }
    if side.passes in seconds:
        passes = seconds[side.passes]
        row['ratio_to_passes'] = ratio(own, passes)
        judge(side, row, ratio(passes, seconds[base]))
    return row


def judge(side: Side, row: dict[str, Any], passes: float) -> None:
    """Adds to a row whether it keeps the limit of its side.

    Args:
        side: has the limits.
        row: has the ratios.
        passes: ratio of the passes alone to the first side.
    """
    if side.base_limit is not None and passes <= side.base_limit:
        limit, value, of = side.base_limit, row['ratio'], 'stock'
    elif side.limit is not None:
        limit, value, of = side.limit, row['ratio_to_passes'], 'its passes'
    else:
        return
    row['passed'] = value <= limit
    row['verdict'] = f'≤ {limit} of {of}: {"pass" if row["passed"] else "FAIL"}'
