"""The length of a training: passes over the data, updates, and what depends on them."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import ConfigError

_LOOPS = {
    'EpochBasedTrainLoop': 'mmrobust.AdvEpochBasedTrainLoop',
    'IterBasedTrainLoop': 'mmrobust.AdvIterBasedTrainLoop',
}
# Settings of hooks that count epochs (from the start, or from the end).
_HOOK_EPOCHS = ('switch_epoch', 'num_last_epochs')


def convert_loop(cfg: Config, adversary: dict, replays: int, schedule: float) -> None:
    """Puts the adversarial loop in place of mmengine's, with a new length.

    Args:
        cfg: the config; ``train_cfg``, ``param_scheduler`` and hooks are changed.
        adversary: config of the adversary.
        replays: updates per batch.
        schedule: updates, relative to the config's own training.

    Raises:
        ConfigError: for a train loop that is not mmengine's own.
    """
    if cfg.get('train_cfg') is None:
        raise ConfigError('the config has no train_cfg, so there is no training.')
    loop = dict(cfg.train_cfg)
    by_epoch = loop.pop('by_epoch', None)
    kind = loop.get('type')
    if kind is None:
        epochs = by_epoch if by_epoch is not None else 'max_epochs' in loop
        kind = 'EpochBasedTrainLoop' if epochs else 'IterBasedTrainLoop'
    if kind in _LOOPS.values():
        raise ConfigError(
            'the config is adversarial already: change train_cfg.adversary instead.'
        )
    if kind not in _LOOPS:
        raise ConfigError(
            f'the config has a train loop of its own, {kind}, which an adversarial one '
            'would replace: start from a config with EpochBasedTrainLoop or '
            'IterBasedTrainLoop.'
        )
    length = 'max_epochs' if kind == 'EpochBasedTrainLoop' else 'max_iters'
    if length not in loop:
        raise ConfigError(f'train_cfg has no {length}, the length of the training.')
    before = loop[length]
    # An epoch is a pass over the data, which replays make longer; an iteration is an
    # update, replay or not.
    per_unit = replays if length == 'max_epochs' else 1
    after = max(1, round(before * schedule / per_unit))
    loop.update(type=_LOOPS[kind], adversary=adversary)
    loop[length] = after
    _scale(loop, ('val_begin', 'val_interval'), after / before)
    if loop.get('dynamic_intervals'):
        loop['dynamic_intervals'] = [
            (max(1, round(begin * after / before)), interval)
            for begin, interval in loop['dynamic_intervals']
        ]
    cfg.train_cfg = ConfigDict(loop)
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    in_units = [
        scheduler
        for scheduler in schedulers
        if scheduler.get('by_epoch', True) == (length == 'max_epochs')
    ]
    _scale_schedulers(in_units, before, after, per_unit)
    for hook in cfg.get('custom_hooks') or []:
        if length == 'max_epochs':
            _scale(hook, _HOOK_EPOCHS, after / before)


def _scale_schedulers(
    schedulers: list[dict[str, Any]], before: int, after: int, per_unit: int
) -> None:
    """Stretches what counts in the loop's unit; a warm-up keeps its updates."""
    warmups: dict[int, int] = {}
    for scheduler in schedulers:
        end = scheduler.get('end') or before
        milestones = scheduler.get('milestones') or []
        if scheduler.get('begin', 0) == 0 and end < before / 2 and not milestones:
            # A warm-up is there for the optimizer, not a part of the schedule.
            scheduler['end'] = warmups[end] = min(max(1, round(end / per_unit)), after)
            continue
        begin = scheduler.get('begin')
        _scale(scheduler, ('begin', 'end', 'T_max'), after / before)
        if begin in warmups:  # it follows a warm-up
            scheduler['begin'] = warmups[begin]
        if milestones:
            scaled = sorted({max(1, int(m * after / before)) for m in milestones})
            scheduler['milestones'] = [m for m in scaled if m < after] or [after]


def _scale(node: dict[str, Any], keys: tuple[str, ...], factor: float) -> None:
    for key in keys:
        value = node.get(key)
        if isinstance(value, int) and value > 0:
            node[key] = max(1, round(value * factor))
