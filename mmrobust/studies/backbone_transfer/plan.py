"""What a sweep consists of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmengine.config import Config

from ...errors import ConfigError

# How the target task is learnt. `fixed`: the backbone stays as it is, all else learns.
# `full`: what the config lets learn, which for detectors usually is not the stem.
MODES = ('fixed', 'full')

Value = TypeVar('Value')


@dataclass(frozen=True)
class Run:
    """One training of the target task.

    Attributes:
        eps: radius of the backbone's pre-training.
        mode: ``'fixed'`` or ``'full'``.
        lr: learning rate.
        seed: seed of everything random.
    """

    eps: float
    mode: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder below ``runs/``."""
        return f'eps{number(self.eps)}/{self.mode}/lr{number(self.lr)}/seed{self.seed}'


@dataclass(frozen=True)
class Sweep:
    """All trainings of one study.

    Attributes:
        cfg: the target task, with all overrides.
        checkpoints: file or URL of the backbone by the eps of its pre-training.
        modes: ``'fixed'``, ``'full'`` or both.
        lrs: learning rates to choose from.
        seeds: one training each.
        norm: norm of the pre-training's eps, for the report.
        metric: key of the figure, or None for the usual one of the evaluator.
        work_dir: folder of everything that is written.
    """

    cfg: Config
    checkpoints: dict[float, str]
    modes: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    norm: str
    metric: str | None
    work_dir: Path

    def runs(self) -> list[Run]:
        """All runs; a whole curve of one seed comes first."""
        return [
            Run(eps, mode, lr, seed)
            for seed in self.seeds
            for eps in self.checkpoints
            for mode in self.modes
            for lr in self.lrs
        ]

    def folder(self, run: Run) -> Path:
        """Where a run's logs, checkpoints and result are."""
        return self.work_dir / 'runs' / run.name


def number(value: float) -> str:
    """A number as short as it can be without becoming another one."""
    short = f'{value:g}'
    return short if float(short) == value else repr(value)


def parse_checkpoints(items: Sequence[str]) -> dict[float, str]:
    """Reads ``EPS=FILE`` pairs.

    Returns:
        Files by eps, in rising order.

    Raises:
        ConfigError: for a pair without ``=``, a bad eps, or an eps given twice.
    """
    found: dict[float, str] = {}
    for item in items:
        label, separator, path = item.partition('=')
        if not (separator and label and path):
            raise ConfigError(
                f'--checkpoints {item!r} must be EPS=FILE, for instance 4=a.pth.'
            )
        eps = _float(label)
        if eps is None or eps < 0:
            raise ConfigError(
                f'--checkpoints {item!r}: eps {label!r} must be a number of at least '
                '0 (0 for a standard backbone).'
            )
        if eps in found:
            raise ConfigError(
                f'--checkpoints has eps {number(eps)} twice ({found[eps]!r} and '
                f'{path!r}): give each eps one checkpoint.'
            )
        found[eps] = path
    return dict(sorted(found.items()))


def parse_modes(items: Sequence[str]) -> tuple[str, ...]:
    """Reads ``--modes``.

    Raises:
        ConfigError: for an unknown mode, or one given twice.
    """
    for item in items:
        if item not in MODES:
            raise ConfigError(
                f'--modes {item!r} is unknown: choose from {" and ".join(MODES)}.'
            )
    return _unique('--modes', list(items))


def parse_lrs(items: Sequence[str]) -> tuple[float, ...]:
    """Reads ``--lr``.

    Raises:
        ConfigError: for anything but positive numbers, or one given twice.
    """
    values = []
    for item in items:
        value = _float(item)
        if value is None or value <= 0:
            raise ConfigError(f'--lr {item!r} must be a positive number.')
        values.append(value)
    return _unique('--lr', values)


def parse_seeds(items: Sequence[str]) -> tuple[int, ...]:
    """Reads ``--seeds``.

    Raises:
        ConfigError: for anything but whole numbers from 0 to 2**32 - 1, or one given
            twice.
    """
    for item in items:
        if not (item.isascii() and item.isdigit() and int(item) < 2**32):
            raise ConfigError(
                f'--seeds {item!r} must be a whole number from 0 to 2**32 - 1.'
            )
    return _unique('--seeds', [int(item) for item in items])


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _unique(option: str, values: list[Value]) -> tuple[Value, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f'{option} has {value} twice: give it once.')
    return tuple(values)
