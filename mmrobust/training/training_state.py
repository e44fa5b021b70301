"""What training needs beside the weights to go on as if it had not been interrupted."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import torch
from mmengine.dist import gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..checks.dataset import keeps_images
from ..registry import HOOKS
from ..utils.models import bare_model
from ..utils.seeding import generator_states, set_generator_states
from . import Adversary
from .resuming import save_in_one_piece


@HOOKS.register_module()
class TrainingStateHook(Hook):
    """Keeps in checkpoints what mmengine leaves out, of every process.

    That is the carried perturbation, the random generators, gradients that wait for
    the rest of an accumulation, the size of the next batch in multi-scale training,
    statistics of other processes, the place in a pass over the data, and whether a
    validation is still to come.
    Checkpoints are written in one piece, and none is removed before the next is whole.

    The adversarial train loops register it themselves; nothing needs to be configured.
    The checkpoint still loads anywhere: it only has one more key.

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

    # ------------------------------------------------------------------- saving

    def before_train(self, runner: Runner) -> None:
        """Sees to it that a kill while a checkpoint is written loses none."""
        if isinstance(runner, Runner):
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

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Gathers the state of all processes if a checkpoint follows."""
        self._gathered = None
        if get_world_size() > 1 and any(_saves_now(h, runner) for h in runner.hooks):
            self._gather(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Gathers the state of all processes."""
        self._gather(runner, runner.iter)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
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
                name: parameter.grad.cpu()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        if get_world_size() > 1:
            # BatchNorm's statistics, of which checkpoints have the first process's.
            names = model.state_dict().keys()
            state['buffers'] = {
                name: buffer.cpu()
                for name, buffer in model.named_buffers()
                if name in names
            }
        return state

    # ---------------------------------------------------------------- validation

    def before_val(self, runner: Runner) -> None:
        """Sets the generators aside: validation must not change the training.

        It would else be another one after a restart between checkpoint and validation.
        What is left is the number that a plain loop draws for the loader's workers.
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

    # ------------------------------------------------------------------ resuming

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the state until everything else is there."""
        if not runner._resume:
            return
        self._loaded = checkpoint.get(self.key, {})

    def restore(self, runner: Runner) -> dict[str, Any]:
        """Restores this process's state, as the last thing before an update.

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
        gradients = own.get('gradients', {})
        for name, parameter in model.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter)
        buffers = own.get('buffers', {})
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        set_generator_states(own['generators'])


def _saves_now(hook: Hook, runner: Runner) -> bool:
    """Whether mmengine's hook saves a checkpoint after this update."""
    if not isinstance(hook, CheckpointHook) or hook.by_epoch:
        return False
    return hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or (
        hook.save_last and hook.is_last_train_iter(runner)
    )


def _batch_resizes(model: Any) -> list[Any]:
    """Modules like mmdet's BatchSyncRandomResize, which draws a size for a while."""
    modules = model.data_preprocessor.modules()
    return [module for module in modules if hasattr(module, '_input_size')]


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
