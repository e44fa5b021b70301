"""Times and peak memory of things that are compared, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from mmrobust.errors import ConfigError
from mmrobust.report import markdown_table
from mmrobust.utils.measuring import PeakMemory

# How figures are written, by key of a row.
_FORMATS = {
    'milliseconds': '.1f',
    'images_per_second': '.2f',
    'ratio': '.3f',
    'ratio_to_passes': '.3f',
    'mebibytes': '.1f',
}


@dataclass
class Table:
    """Rows of figures with a title.

    Attributes:
        title: says what was measured.
        columns: headers by key of a row, text before figures; a row lacks what does
            not apply to it.
        rows: the figures. ``passed``, where a row has it, says whether it kept its
            limit.
        notes: sentences below the table.
    """

    title: str
    columns: dict[str, str]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Names of the rows that did not keep their limit."""
        return [row['what'] for row in self.rows if row.get('passed') is False]

    def markdown(self) -> str:
        """Writes the table in Markdown."""
        cells = [
            [
                '' if row.get(key) is None else format(row[key], _FORMATS.get(key, ''))
                for key in self.columns
            ]
            for row in self.rows
        ]
        text = markdown_table(list(self.columns.values()), cells)
        return '\n\n'.join([f'**{self.title}**', text, *self.notes])


@dataclass(frozen=True)
class Side:
    """One of several things that are compared.

    Attributes:
        name: what it is called.
        run: does it.
        images: that a run works on.
        steps: how many of what the name says a run makes; figures are for one.
        passes: name of the side that makes only the passes that this one needs.
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

    def now(self) -> float:
        """Reads the clock once the device has done its work."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.kind == 'cpu' else time.perf_counter()

    def seconds(self, run: Callable[[], object]) -> float:
        """Measures a call."""
        started = self.now()
        run()
        return self.now() - started


def alternate(
    sides: Sequence[Side], clock: Clock, repeats: int
) -> dict[str, list[float]]:
    """Measures seconds of every side by name, in turns.

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
        sides: what is compared; see :func:`possible`.
        clock: measures.
        repeats: how often each is measured.
        around: a context in which all of them run.
    """
    with around():
        sides, notes = possible(sides)
        seconds = alternate(sides, clock, repeats)
    base, rows = seconds[sides[0].name], []
    for side in sides:
        own = seconds[side.name]
        median = statistics.median(own)
        row: dict[str, Any] = {
            'what': side.name,
            'milliseconds': 1000 * median,
            'images_per_second': side.images / median,
            'ratio': ratio(own, base),
            'seconds': own,
        }
        if side.passes in seconds:
            passes = seconds[side.passes]
            row['ratio_to_passes'] = ratio(own, passes)
            judge(side, row, ratio(passes, base))
        rows.append(row)
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
    """Runs every side once, to warm up.

    Returns:
        The sides that the model is for, and a note on each other one, which a
        ConfigError refuses.
    """
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
    """Computes the median of the ratios within each turn."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


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


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Measures the most memory that tensors made in a call take at once.

    See :class:`mmrobust.utils.measuring.PeakMemory`.

    Args:
        run: what is measured.
        device: whose memory; a GPU or the CPU.
    """
    with PeakMemory(device) as peak:
        run()
    return peak.bytes
