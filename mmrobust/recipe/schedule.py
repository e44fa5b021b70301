"""The length of a training: passes over the data, updates, and what depends on them."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from ..errors import ConfigError
from ..utils.configs import type_name

_LOOPS = {
    'EpochBasedTrainLoop': 'mmrobust.AdvEpochBasedTrainLoop',
    'IterBasedTrainLoop': 'mmrobust.AdvIterBasedTrainLoop',
}
# Settings of hooks that name an epoch, counted from the start.
_HOOK_EPOCHS = ('switch_epoch', 'begin_epoch', 'max_epochs', 'total_epochs')


class Length(NamedTuple):
    """The length of a training before and after its conversion.

    Attributes:
        before: in epochs, or in updates where ``epochs`` is False.
        after: in the same unit.
        epochs: whether the loop counts epochs.
        replays: updates per batch of a pass; 1 where the loop counts updates.
        validations: number of them, relative to the old one.
    """

    before: int
    after: int
    epochs: bool
    replays: int
    validations: float = 1.0

    @property
    def unchanged(self) -> bool:
        """Returns whether the training is as long as it was."""
        return self.after == self.before and self.replays == 1

    def exact(self, moment: float, by_epoch: bool) -> float:
        """Returns where a moment of the old training lies in the new one."""
        after = self.after if by_epoch else self.after * self.replays
        return moment * after / self.before

    def place(self, moment: float, by_epoch: bool) -> int | float:
        """As :meth:`exact`; epochs may come out as fractions, updates are rounded."""
        exact = self.exact(moment, by_epoch)
        return _whole(exact) if by_epoch else round(exact)

    def place_on_grid(self, moment: float, by_epoch: bool) -> int | float:
        """As :meth:`place`, but for what mmengine compares with whole updates.

        An epoch has ``replays`` updates per batch, so its halves and quarters are whole
        numbers of updates if ``replays`` has these divisors, and exact in binary.
        """
        parts = self.replays & -self.replays if by_epoch else 1
        return _whole(max(1, round(self.exact(moment, by_epoch) * parts)) / parts)


def convert_loop(cfg: Config, adversary: dict, replays: int, schedule: float) -> Length:
    """Puts the adversarial loop in place of mmengine's, with a new length.

    Args:
        cfg: the config; ``train_cfg`` is changed.
        adversary: config of the adversary.
        replays: updates per batch.
        schedule: updates, relative to the config's own training.

    Returns:
        The length, to convert schedules and hooks by.

    Raises:
        ConfigError: for a train loop that is not mmengine's own.
    """
    if cfg.get('train_cfg') is None:
        raise ConfigError('the config has no train_cfg, so there is no training.')
    loop = dict(cfg.train_cfg)
    by_epoch = loop.pop('by_epoch', None)
    kind = type_name(loop)
    if not kind:
        epochs = by_epoch if by_epoch is not None else 'max_epochs' in loop
        kind = 'EpochBasedTrainLoop' if epochs else 'IterBasedTrainLoop'
    if f'mmrobust.{kind}' in _LOOPS.values():
        raise ConfigError(
            'the config is adversarial already: change train_cfg.adversary instead.'
        )
    if kind not in _LOOPS:
        raise ConfigError(
            f'the config has a train loop of its own, {kind}, which an adversarial one '
            'would replace: start from a config with EpochBasedTrainLoop or '
            'IterBasedTrainLoop.'
        )
    key = 'max_epochs' if kind == 'EpochBasedTrainLoop' else 'max_iters'
    if key not in loop:
        raise ConfigError(f'train_cfg has no {key}, the length of the training.')
    # An epoch is a pass over the data, which replays make longer; an iteration is an
    # update, replay or not.
    epochs = key == 'max_epochs'
    replays = replays if epochs else 1
    after = max(1, round(loop[key] * schedule / replays))
    length = Length(loop[key], after, epochs, replays)
    loop.update({'type': _LOOPS[kind], 'adversary': adversary, key: after})
    interval = loop.get('val_interval', 1)
    _scale(loop, ('val_begin', 'val_interval'), length)
    more = after / length.before * interval / loop.get('val_interval', 1)
    length = length._replace(validations=more)
    if loop.get('dynamic_intervals'):
        loop['dynamic_intervals'] = [
            (max(1, round(length.place(begin, epochs))), interval)
            for begin, interval in loop['dynamic_intervals']
        ]
    cfg.train_cfg = ConfigDict(loop)
    return length


def convert_schedulers(cfg: Config, length: Length, old_rate: float) -> None:
    """Lets schedulers follow a new length, and the rates of all parameters alike.

    What happens in the middle of the old training happens in the middle of the new one.
    Only a warm-up, which is there for the optimizer, keeps its number of updates.
    Rates that stand there as numbers become shares of each parameter's own rate.

    Args:
        cfg: the config; ``param_scheduler`` is changed.
        length: of the training.
        old_rate: the learning rate that the config's schedulers were made for.
    """
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    for scheduler in schedulers:
        if type_name(scheduler).endswith('LR') or scheduler.get('param_name') == 'lr':
            _relative(scheduler, old_rate)
    if length.unchanged or not schedulers:
        return
    warmed: dict[tuple[bool, float], float] = {}
    for scheduler in schedulers:
        by_epoch = scheduler.get('by_epoch', True)
        end = scheduler.get('end')
        if end and not scheduler.get('begin') and _warms_up(scheduler):
            if by_epoch == length.epochs:
                scheduler['end'] = _whole(min(end / length.replays, length.after))
            warmed[by_epoch, end] = scheduler['end']
        else:
            begin = warmed.get((by_epoch, scheduler.get('begin', 0)))
            _stretch(scheduler, length, begin)
        _step_by_update(scheduler)
    # A warm-up may leave nothing of a short training.
    cfg.param_scheduler = [
        s for s in schedulers if s.get('begin', 0) < s.get('end', inf)
    ]


def _warms_up(scheduler: dict) -> bool:
    """Tells whether a scheduler at the start of a training lets the rate rise."""
    name = type_name(scheduler)
    if name.startswith('Linear'):
        start, end = scheduler.get('start_factor', 1 / 3), scheduler.get('end_factor')
        return start < (1 if end is None else end)
    return name.startswith(('Constant', 'QuadraticWarmup'))


def _stretch(scheduler: dict, length: Length, begin: float | None) -> None:
    """Puts all moments of a scheduler where they lie in the new training.

    Args:
        scheduler: is changed.
        length: of the training.
        begin: where it begins, if it follows a warm-up.
    """
    name, by_epoch = type_name(scheduler), scheduler.get('by_epoch', True)
    old_begin = scheduler.get('begin', 0)
    if 'total_steps' in scheduler:
        # mmengine wants a whole number of epochs here, and takes any end.
        scheduler['end'] = old_begin + scheduler.pop('total_steps')
    old_end = scheduler.get('end') or length.before
    for key in ('begin', 'end'):
        if scheduler.get(key):
            scheduler[key] = length.place(scheduler[key], by_epoch)
    if begin is not None:
        scheduler['begin'] = begin
    if scheduler.get('T_max') == old_end - old_begin:
        del scheduler['T_max']  # mmengine's default
    elif scheduler.get('T_max'):
        scheduler['T_max'] = length.place(scheduler['T_max'], by_epoch)
    if 'milestones' in scheduler:
        # From the start of the training on. One that comes twice decays twice.
        scheduler['begin'] = 0
        scheduler['milestones'] = [
            length.place_on_grid(old_begin + moment, by_epoch)
            for moment in scheduler['milestones']
        ]
    if 'periods' in scheduler:
        scheduler['periods'] = _periods(scheduler['periods'], length, by_epoch)
    if name.startswith('Exponential'):
        if by_epoch and not scheduler.get('convert_to_iter_based'):
            # The same, and an epoch is a step that can be cut.
            scheduler['type'] = name.replace('Exponential', 'Step')
            scheduler['step_size'] = 1
        else:
            scheduler['gamma'] **= length.before / (length.after * length.replays)
    if 'step_size' in scheduler:
        step = length.place_on_grid(scheduler['step_size'], by_epoch)
        exact = length.exact(scheduler['step_size'], by_epoch)
        gamma = scheduler.get('gamma', 0.1) ** (step / exact)
        scheduler.update(step_size=step, gamma=gamma)
    if name.startswith('ReduceOnPlateau'):
        # It acts in the last of patience + 1 validations without an improvement.
        bad = (scheduler.get('patience', 10) + 1) * length.validations
        scheduler['patience'] = max(0, round(bad) - 1)
        rest = scheduler.get('cooldown', 0) * length.validations
        scheduler['cooldown'] = round(rest)
        for key in ('begin', 'end'):
            if key in scheduler:
                scheduler[key] = max(round(scheduler[key]), int(key == 'end'))


def _periods(periods: list[int], length: Length, by_epoch: bool) -> list[int | float]:
    ends = [sum(periods[: i + 1]) for i in range(len(periods))]
    placed = [0, *(length.place_on_grid(end, by_epoch) for end in ends)]
    return [_whole(end - begin) for begin, end in pairwise(placed)]


def _step_by_update(scheduler: dict) -> None:
    """Lets a scheduler in epochs act by update, where epochs are too coarse for it.

    It would not hit a fraction of one, and mmengine's schedulers that reach their end
    value in the last of their steps never do so in an interval of a single one.
    """
    if not scheduler.get('by_epoch', True) or 'patience' in scheduler:
        return  # what waits for validations cannot act by update
    begin, end = scheduler.get('begin', 0), scheduler.get('end')
    moments = [begin, end or 0, scheduler.get('T_max') or 0]
    moments += [*scheduler.get('milestones', ()), *scheduler.get('periods', ())]
    moments.append(scheduler.get('step_size', 1))
    if not all(isinstance(m, int) for m in moments) or (end and end - begin < 2):
        scheduler['convert_to_iter_based'] = True


def _relative(scheduler: dict, old_rate: float) -> None:
    """Turns rates that hold for all parameters into shares of each one's own."""
    name = type_name(scheduler)
    if name.startswith('OneCycle'):
        scheduler['type'] = 'mmrobust.RelativeOneCycleLR'
        scheduler['eta_max_ratio'] = scheduler.pop('eta_max', 0) / old_rate
        scheduler.pop('param_name', None)
    elif name.startswith('ReduceOnPlateau'):
        scheduler.update(min_value=0.0, eps=0.0)
    elif scheduler.get('eta_min') and name.startswith(('Cosine', 'Poly')):
        scheduler['eta_min_ratio'] = scheduler.pop('eta_min') / old_rate
        if name.startswith('Poly'):
            scheduler['type'] = 'mmrobust.RelativePolyLR'
            scheduler.pop('param_name', None)


def convert_hooks(cfg: Config, length: Length) -> None:
    """Lets hooks that count epochs or updates follow a new length.

    Args:
        cfg: the config; ``custom_hooks`` and ``default_hooks`` are changed.
        length: of the training.
    """
    named = cfg.get('default_hooks') or {}
    checkpoint = named.get('checkpoint') or {}
    if checkpoint.get('by_epoch', True) == length.epochs:
        _scale(checkpoint, ('interval', 'save_begin'), length)
    for hook in [*(cfg.get('custom_hooks') or []), *named.values()]:
        if not isinstance(hook, dict):
            continue
        # mmyolo gives it to the third group of its own constructor.
        if 'warmup_bias_lr' in hook:
            hook['warmup_bias_lr'] = 0.0
        if length.epochs and not length.unchanged:
            _scale(hook, _HOOK_EPOCHS, length)
            if 'warmup_epochs' in hook:  # as of a scheduler: it keeps its updates
                hook['warmup_epochs'] = _whole(hook['warmup_epochs'] / length.replays)
            if 'num_last_epochs' in hook:
                # mmdet's hooks act one epoch earlier than the name says. They must not
                # from the first one on: -1 is never.
                last = round(length.place(hook['num_last_epochs'] + 1, True))
                hook['num_last_epochs'] = min(last, length.after - 1) - 1
        if hook.get('begin_iter'):
            hook['begin_iter'] = length.place(hook['begin_iter'], False)


def _scale(node: dict[str, Any], keys: tuple[str, ...], length: Length) -> None:
    """Puts moments, in what the loop counts, where they lie in the new training."""
    for key in keys:
        value = node.get(key)
        if isinstance(value, int) and value > 0:
            node[key] = max(1, round(length.place(value, length.epochs)))


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
