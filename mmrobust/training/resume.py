"""Exact resume: the state that checkpoints keep, and the checkpoint to go on from.

mmengine's checkpoints have weights, optimizer, schedules and logs.
:class:`TrainingStateHook` adds what else an update depends on, and
:func:`settle_checkpoint` finds the newest checkpoint that is whole.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import (
    gather_object,
    get_rank,
    get_world_size,
    is_main_process,
    master_only,
)
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from ..checks import keeps_images
from ..errors import ConfigError
from ..registry import HOOKS
from ..utils.files import replacing
from ..utils.models import bare_model
from ..utils.seeding import derive_seed, generator_states, set_generator_states
from ..weights import read_checkpoint
from .adversary import Adversary


@HOOKS.register_module()
class TrainingStateHook(Hook):
    """Keeps in checkpoints the state of every process that mmengine leaves out.

    That is the adversary's state, the random generators, gradients that wait for the
    rest of an accumulation, the size of the next batch in multi-scale training,
    statistics of other processes, the place in a pass over the data, and whether a
    validation is still to come. Checkpoints are written in one piece, and none is
    removed before the next is whole; they load in plain mmdet, having one more key.
    The adversarial train loops register the hook themselves.

    Args:
        adversary: the loop's adversary.
    """

    key = 'mmrobust_training'
    # After what changes the state, before CheckpointHook.
    priority = 'LOW'

    def __init__(self, adversary: Adversary) -> None:
        self.adversary = adversary
        self._loaded: dict[str, Any] | None = None
        self._gathered: tuple[int, list] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._validations = 0
        self._validated = -1
        self._kept_one: list[CheckpointHook] = []

    def before_train(self, runner: Runner) -> None:
        """Prepares for a kill while a checkpoint is written: none may get lost."""
        save_in_one_piece(runner)
        for hook in runner.hooks:
            # It removes the oldest one first, which would be the only one.
            if isinstance(hook, CheckpointHook) and hook.max_keep_ckpts == 1:
                hook.max_keep_ckpts = 2
                if hasattr(hook, 'keep_ckpt_ids'):  # its own before_train came first
                    hook.keep_ckpt_ids = deque(hook.keep_ckpt_ids, maxlen=2)
                self._kept_one.append(hook)

    def after_train(self, runner: Runner) -> None:
        """Leaves as many checkpoints as were asked for."""
        for hook in self._kept_one:
            while len(hook.keep_ckpt_ids) > 1:
                name = hook.filename_tmpl.format(hook.keep_ckpt_ids.popleft())
                path = hook.file_backend.join_path(hook.out_dir, name)
                if is_main_process() and hook.file_backend.isfile(path):
                    hook.file_backend.remove(path)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Gathers the state of all processes if a checkpoint follows."""
        self._gathered = None
        if get_world_size() > 1 and any(_saves_now(h, runner) for h in runner.hooks):
            self._gather(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Gathers the state of all processes."""
        self._gather(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Gathers the state of all processes; the best checkpoint may follow."""
        self._gather(runner, runner.iter)

    def _gather(self, runner: Runner, updates: int) -> None:
        # Checkpoints are saved by the first process alone, too late to ask the others.
        if get_world_size() > 1:
            states = gather_object(self._own(runner, updates))
            if states is not None:
                self._gathered = updates, states

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds settings and state; called on the main process only."""
        checkpoint['meta']['adversary'] = self.adversary.describe()
        # meta counts the updates that the weights have seen; runner.iter lags by one
        # while the hooks of an update run.
        updates = checkpoint['meta']['iter']
        if self._gathered is not None and self._gathered[0] == updates:
            ranks = self._gathered[1]
        else:
            ranks = [self._own(runner, updates)]
        checkpoint[self.key] = {
            'ranks': ranks,
            'processes': get_world_size(),
            'updates_of_pass': runner.train_loop.updates_of_pass,
            'length_of_pass': len(runner.train_dataloader),
            'validated': self._validated == updates,
            'validations': self._validations,
        }

    def _own(self, runner: Runner, updates: int) -> dict[str, Any]:
        model = bare_model(runner.model)
        state = {
            'adversary': self.adversary.state_dict(updates),
            'generators': self._before_validation or generator_states(),
            'sizes': [module._input_size for module in _batch_resizes(model)],
        }
        if getattr(runner.optim_wrapper, '_accumulative_counts', 1) > 1:
            state['gradients'] = {
                name: weight.grad.cpu()
                for name, weight in model.named_parameters()
                if weight.grad is not None
            }
        if get_world_size() > 1:
            # BatchNorm's statistics, of which checkpoints have the first process's.
            state['buffers'] = {n: b.cpu() for n, b in _kept_buffers(model).items()}
        return state

    def before_val(self, runner: Runner) -> None:
        """Sets the generators aside, so that validation changes nothing in training.

        A training that is killed between a checkpoint and its validation could not go
        on exactly otherwise. One number is drawn first, as mmengine's loop draws it to
        seed the workers of the validation loader.
        """
        if self._validations == 0 or not runner.val_dataloader.persistent_workers:
            torch.empty((), dtype=torch.int64).random_()
        self._validations += 1
        self._validated = runner.iter
        self._before_validation = generator_states()

    def after_val(self, runner: Runner) -> None:
        """Puts the generators back."""
        if self._before_validation is not None:
            set_generator_states(self._before_validation)
            self._before_validation = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the loaded state until :meth:`restore`."""
        if runner._resume:
            self._loaded = checkpoint.get(self.key, {})

    def restore(self, runner: Runner) -> dict[str, Any]:
        """Restores this process's state; call it right before the first update.

        Returns:
            The state that processes share; empty where training does not resume.
        """
        state, self._loaded = self._loaded, None
        if state is None:
            return {}
        ranks = state.pop('ranks', [])
        if len(ranks) == get_world_size():
            self._take(runner, ranks[get_rank()])
        else:
            _warn(
                f'The checkpoint has the random generators and perturbation of '
                f'{len(ranks)} processes, and {get_world_size()} resume: both start '
                'anew, and training goes on, but not exactly.'
            )
        if keeps_images(runner.train_dataloader.dataset):
            _warn(
                'The pipeline keeps images in memory to mix them (as CachedMosaic '
                'does), and they are gone: training goes on, but not exactly.'
            )
        self._validations = state.get('validations', 0)
        return state

    def _take(self, runner: Runner, own: dict[str, Any]) -> None:
        model = bare_model(runner.model)
        self.adversary.load_state_dict(own['adversary'])
        for module, size in zip(_batch_resizes(model), own['sizes'], strict=False):
            module._input_size = size
        weights, buffers = dict(model.named_parameters()), _kept_buffers(model)
        gradients, statistics = own.get('gradients', {}), own.get('buffers', {})
        for name in weights.keys() & gradients.keys():
            weights[name].grad = gradients[name].to(weights[name])
        for name in buffers.keys() & statistics.keys():
            buffers[name].copy_(statistics[name])
        set_generator_states(own['generators'])


def _kept_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Finds the buffers that checkpoints keep, by the names that they have there."""
    found = {}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                # FSDP and checkpointed activations put modules in between.
                path = re.sub(r'_(fsdp|checkpoint)_wrapped_module\.?', '', path)
                found[f'{path}.{name}'.replace('..', '.').lstrip('.')] = buffer
    return found


def _saves_now(hook: Hook, runner: Runner) -> bool:
    """Tells whether a hook of mmengine saves a checkpoint after this update."""
    if not isinstance(hook, CheckpointHook) or hook.by_epoch:
        return False
    return hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or (
        hook.save_last and hook.is_last_train_iter(runner)
    )


def _batch_resizes(model: Any) -> list[Any]:
    """Finds modules like BatchSyncRandomResize, which keeps a size for some updates."""
    modules = model.data_preprocessor.modules()
    return [module for module in modules if hasattr(module, '_input_size')]


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)


@contextmanager
def checkpoint_file(path: str) -> Iterator[Path]:
    """Gives a file to write a local checkpoint into, which takes its name when whole.

    What earlier kills have left in the folder, each as large as a checkpoint, goes.
    """
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob('.*.pth.*.pth'):
        part.unlink(missing_ok=True)
    with replacing(path) as temporary:
        yield temporary
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())


def save_in_one_piece(runner: Any) -> None:
    """Makes ``runner.save_checkpoint`` write a file that is whole or not there at all.

    mmengine writes into the file itself; killed meanwhile, it leaves a part of it,
    where the previous one of that name may have been. Only local files are covered.
    A strategy, in which all processes take part in saving, sees to that itself.
    """
    if hasattr(runner, 'strategy'):
        return
    stock = runner.save_checkpoint

    @master_only
    def save(out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        if '://' in out_dir or any(args[:1]) or kwargs.get('backend_args'):
            stock(out_dir, filename, *args, **kwargs)
            return
        with checkpoint_file(os.path.join(out_dir, filename)) as temporary:
            stock(out_dir, temporary.name, *args, **kwargs)

    runner.save_checkpoint = save


def settle_checkpoint(runner: Runner) -> None:
    """Decides what is resumed, and takes over its seed, before data are sampled.

    mmengine sets the seed of the checkpoint after it has built the data loader, so
    that without a seed in the config the order of the data would be another one.

    Raises:
        ConfigError: if checkpoints were saved and none of them is whole.
    """
    if not runner._resume:
        return
    path = runner._load_from
    checkpoint: dict[str, Any] = {}
    if path is None:
        path, checkpoint = newest_checkpoint(runner.work_dir)
        runner._load_from = path
    elif '://' not in path:
        checkpoint = read_checkpoint(path)
    seed = checkpoint.get('meta', {}).get('seed')
    if seed is not None and seed != runner._randomness_cfg.get('seed'):
        runner._randomness_cfg.update(seed=seed)
        strategy = getattr(runner, 'strategy', None)
        if strategy is None:
            runner.set_randomness(**runner._randomness_cfg)
        else:
            strategy._randomness.update(seed=seed)
            strategy._set_randomness(**strategy._randomness)


def newest_checkpoint(work_dir: str) -> tuple[str | None, dict[str, Any]]:
    """Finds the checkpoint that was saved last, or the newest whole one before it.

    Args:
        work_dir: with mmengine's ``last_checkpoint``, a file with the path.

    Returns:
        The path, or None if nothing was saved, and what it holds if it is a file.

    Raises:
        ConfigError: if none is whole.
    """
    note = Path(work_dir, 'last_checkpoint')
    last = note.read_text(encoding='utf-8').strip() if note.is_file() else ''
    if '://' in last:
        return last, {}
    folders = {
        os.path.abspath(work_dir),
        os.path.dirname(os.path.abspath(last or note)),
    }
    others = [path for folder in folders for path in glob(f'{folder}/*.pth')]
    others.sort(key=os.path.getmtime, reverse=True)
    reasons = []
    for path in [last, *others] if last else others:
        try:
            checkpoint = read_checkpoint(path)
        except ConfigError as error:
            reasons.append(str(error))
            continue
        # The best one of a validation has no state of the optimizer.
        if path == last or {'meta', 'optimizer'} <= checkpoint.keys():
            if reasons:
                _warn(
                    f'Training resumes from {path}, the newest whole checkpoint: '
                    + ' '.join(reasons)
                )
            return path, checkpoint
    if reasons or last:
        raise ConfigError(
            f'no checkpoint in {work_dir!r} can be resumed ({" ".join(reasons)}): give '
            'one with --resume FILE, or leave --resume out to start anew.'
        )
    return None, {}


@HOOKS.register_module()
class SeedUpdatesHook(Hook):
    """Starts the random numbers of every epoch and update from the run's seed.

    mmengine does not save the generators' state. With this hook a resumed run of a
    stock loop draws what an uninterrupted one draws: dropout, random samplers, and with
    ``num_workers=0`` augmentation (of loops by iteration all but one batch's). The
    adversarial train loops resume exactly without it.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Before the loader's iterator exists."""
        self._seed(runner, 'epoch', runner.epoch)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Before the update."""
        self._seed(runner, 'update', runner.iter)

    def _seed(self, runner: Runner, what: str, number: int) -> None:
        seed = derive_seed(runner.seed, get_rank(), what, number) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
