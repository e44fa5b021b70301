"""Follows a training's learning rates ahead of time, and says where they go astray."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner

from .optim import Rates

# Of the training: a rate that still rises then is hardly a warm-up.
_LATEST_PEAK = 0.4
# Fewer passes over the data, each with several updates per batch, overfit to batches.
_FEWEST_PASSES = 3


def check_schedule(runner: Runner, replays: int) -> None:
    """Logs the rates of backbone and rest over a training, and warns of odd ones.

    Warns if the ratio of both changes (because a rate in the schedule holds for all
    parameters), if the rate still rises late, and if passes over the data are few.

    Args:
        runner: whose loop, optimizer and schedules are built; schedules that stand in
            hooks are not seen.
        replays: updates per batch.
    """
    passes = runner.max_iters / max(len(runner.train_dataloader), 1)
    if not runner.train_loop.repeats_in_loader:
        passes /= replays
    if replays > 1 and passes < _FEWEST_PASSES:
        _warn(
            f'The training makes {passes:.3g} passes over the data, with {replays} '
            'updates per batch in each: fewer replays or a longer training (--schedule '
            'of tools/train.py) will hardly harm and may help.'
        )
    rates = getattr(runner.optim_wrapper, 'mmrobust_rates', None)
    schedulers = runner.cfg.get('param_scheduler')
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    if rates is None or not all(map(_can_follow, schedulers or ())):
        return
    lengths = (runner.max_iters, runner.max_epochs, len(runner.train_dataloader))
    rest, backbone = follow_rates(schedulers or [], rates, *lengths)
    total = len(rest)
    places = sorted({0, int(rest.argmax()), *(total * k // 4 for k in range(4))})
    shown = ', '.join(
        f'{backbone[place]:.3g} and {rest[place]:.3g} at {place / total:.0%}'
        for place in (*places, total - 1)
    )
    print_log(f'Learning rates of backbone and rest: {shown}.', logger='current')
    wanted = rates.backbone / rates.rest
    with np.errstate(divide='ignore', invalid='ignore'):
        off = np.nan_to_num(np.abs(backbone / (rest * wanted) - 1), posinf=np.inf)
    if off.max() > 0.01:
        worst = int(off.argmax())
        _warn(
            f'The schedule does not keep the learning rate of the backbone at '
            f'{wanted:g} of the rest: in update {worst + 1} of {total} they are '
            f'{backbone[worst]:.3g} and {rest[worst]:.3g}. A rate in it holds for all '
            'parameters: write eta_min_ratio for eta_min, mmrobust.RelativePolyLR for '
            'PolyLR, mmrobust.RelativeOneCycleLR for OneCycleLR.'
        )
    peak = int((rest > 0.99 * rest.max()).argmax())
    if peak > _LATEST_PEAK * total:
        _warn(
            f'The learning rate rises until update {peak + 1} of {total}: make the '
            'warm-up shorter, or the training longer.'
        )


def _can_follow(scheduler: Any) -> bool:
    """Tells whether a scheduler is a config, and not made for as many parameters."""
    return isinstance(scheduler, dict) and not isinstance(
        scheduler.get('eta_max'), (list, tuple)
    )


def follow_rates(
    schedulers: list[Any], rates: Rates, updates: int, epochs: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Steps schedulers through a whole training of two parameters.

    Args:
        schedulers: their configs.
        rates: of rest and backbone before any schedule.
        updates: of the training.
        epochs: of the training; 1 in loops by iteration, as in mmengine.
        length: updates in a pass over the data, for schedulers that count passes and
            act by update.

    Returns:
        The rates of the rest and of the backbone in each update.
    """
    parts = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [
        {'params': [part], 'lr': lr} for part, lr in zip(parts, rates, strict=True)
    ]
    wrapper = OptimWrapper(torch.optim.SGD(groups, lr=rates.rest))
    built = []
    for scheduler in deepcopy(schedulers):
        scheduler.setdefault(
            'end', epochs if scheduler.get('by_epoch', True) else updates
        )
        given = {'optimizer': wrapper, 'epoch_length': length}
        built.append(PARAM_SCHEDULERS.build(scheduler, default_args=given))
    by_update = [scheduler for scheduler in built if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in built if scheduler.by_epoch]
    groups = wrapper.optimizer.param_groups
    found = np.empty((updates, 2))
    wrapper.step()  # schedulers warn if none comes before theirs
    for update in range(updates):
        found[update] = groups[0]['lr'], groups[1]['lr']
        for scheduler in by_update:
            scheduler.step()
        if (update + 1) % max(1, updates // epochs) == 0:
            for scheduler in by_epoch:
                scheduler.step()
    return found[:, 0], found[:, 1]


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
