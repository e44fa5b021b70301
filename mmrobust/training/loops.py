"""Adversarial train loops, by epoch and by iteration.

A batch comes from the replaying data loader (:mod:`.replay`), the loop hands it to the
adversary, which perturbs its images and calls the stock ``model.train_step`` on them:
see ``_update``. That is the one seam that works alike on one device, under DDP, with
AMP, EMA, gradient clipping and compile, and it leaves plain mmdet's checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..batch import check_batch, check_range
from ..checks import (
    check_classes,
    check_has_boxes,
    check_one_image_each,
    gives_rgb,
)
from ..compat.checkpointing import checkpoints_give_input_gradients
from ..distributed import is_sharded
from ..errors import ConfigError, doing
from ..registry import ADVERSARIES, LOOPS
from ..utils.acceleration import Acceleration
from ..utils.models import bare_model
from ..utils.validation import positive_int
from ..weights import ConvertedWeightsHook, check_normalization
from .adversary import Adversary, NoAdversary
from .finite_updates import FiniteUpdates
from .rates import check_schedule
from .replay import ReplayDataLoader, ReplayIterator
from .resume import TrainingStateHook, settle_checkpoint
from .sharded import check_strategy


class _AdversarialTraining:
    """The part that both loops share: checks, the frame of a training, one update.

    ``run`` of a loop calls ``_check`` and ``_train``, in which ``_update`` follows
    ``_update`` and, where it is due, a validation.
    """

    runner: Runner
    dataloader: DataLoader
    adversary: Adversary
    speed: Acceleration
    max_skipped: int
    val_begin: int
    val_interval: int
    stop_training: bool
    _guard: FiniteUpdates
    _state: TrainingStateHook
    _iter: int
    # How many updates of the pass that is under way have been made.
    updates_of_pass = 0

    # Otherwise the loop repeats the batches, and a pass has as many as in mmengine.
    repeats_in_loader = True

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        adversary: Adversary | dict,
        max_skipped: int = 20,
        speed: Mapping[str, Any] | None = None,
        **stock: Any,
    ) -> None:
        for key in ('max_epochs', 'max_iters', 'val_begin', 'val_interval'):
            if key in stock and (key, stock[key]) != ('val_begin', 0):
                stock[key] = positive_int(stock[key], key)
        self.max_skipped = positive_int(max_skipped, 'max_skipped')
        self.speed = Acceleration.read(speed)
        self.adversary = (
            ADVERSARIES.build(adversary) if isinstance(adversary, dict) else adversary
        )
        check_strategy(runner, self.adversary, self.speed)
        if isinstance(runner.model, dict):
            # A strategy would build it when the loops are there, which look at it.
            runner.model = runner.strategy.build_model(runner.model)
        settle_checkpoint(runner)
        loader: Any = dataloader
        if isinstance(dataloader, dict):
            diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
            loader = runner.build_dataloader(
                dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed
            )
        replays = self.adversary.replays
        self.adversary.updates_per_epoch = len(loader) * replays
        times = replays if self.repeats_in_loader else 1
        # Before mmengine's loop, which counts the iterations by the loader's length.
        attacks = not isinstance(self.adversary, NoAdversary)
        loader = ReplayDataLoader(loader, times, runner.seed, measured=attacks)
        super().__init__(runner, loader, **stock)  # type: ignore[call-arg]
        self._range_is_known = False
        self._state = TrainingStateHook(self.adversary)
        self.runner.register_hook(self._state, priority=self._state.priority)
        self.runner.register_hook(ConvertedWeightsHook())

    def _check(self) -> None:
        """Refuses what would silently not be the training that was asked for."""
        wrapper, dataset = self.runner.optim_wrapper, self.dataloader.dataset
        check_normalization(self.runner.model, gives_rgb(dataset))
        if not isinstance(self.adversary, NoAdversary):
            check_one_image_each(bare_model(self.runner.model))
        if not hasattr(wrapper, '_accumulative_counts'):
            raise ConfigError(
                f'{type(wrapper).__name__} holds several optimizers, which adversarial '
                'training does not support: use one OptimWrapper.'
            )
        counts = wrapper._accumulative_counts
        if counts > 1 and self.adversary.replays > 1:
            raise ConfigError(
                f'FreeAT replays each batch, so accumulative_counts={counts} would '
                'accumulate one batch with itself: set accumulative_counts=1, or use '
                'PGDAdversary.'
            )
        if counts > 1 and self.adversary.awp_gamma:
            raise ConfigError(
                f'awp_gamma perturbs the weights against the batch of an update, and '
                f'accumulative_counts={counts} makes one of several: set '
                'accumulative_counts=1, or leave awp_gamma out.'
            )
        warmup, updates = self.adversary.warmup_iters, self.runner.max_iters
        if warmup > updates:
            raise ConfigError(
                f'warmup_iters={warmup} is more than the {updates} updates of the '
                'training, so eps would never reach its full size: make it smaller.'
            )
        check_has_boxes(dataset, 'training')
        check_classes(bare_model(self.runner.model), dataset)
        self.adversary.prepare(dataset)
        check_schedule(self.runner, self.adversary.replays)
        print_log(
            f'Adversarial training: {self.adversary.describe()}', logger='current'
        )

    @contextmanager
    def _accelerated(self) -> Iterator[None]:
        """Trains as ``speed`` asks for it."""
        runner, wrapper = self.runner, self.runner.optim_wrapper
        compiled = runner.cfg.get('compile')
        if self.speed.compile is not None and compiled:
            raise ConfigError(
                'compile compiles the whole update and speed.compile its backbone and '
                'neck: leave one of them out.'
            )
        amp = isinstance(wrapper, AmpOptimWrapper) and wrapper.cast_dtype
        if self.speed.autocast and amp not in (False, torch.bfloat16):
            raise ConfigError(
                'AmpOptimWrapper computes in float16 and speed.autocast in bfloat16: '
                "set optim_wrapper.dtype='bfloat16', or leave one of them out."
            )
        wrap_anew = self.speed.channels_last and is_model_wrapper(runner.model)
        if wrap_anew and compiled:
            raise ConfigError(
                'compile is lost where speed.channels_last wraps the model anew: leave '
                'one of them out.'
            )
        if settings := self.speed.describe():
            print_log(f'Acceleration: {settings}', logger='current')
        own = self.adversary.objective.terms is not None
        with self.speed.prepared(bare_model(runner.model), keeps_graph=own):
            if wrap_anew:
                # Its buckets for gradients have the layout that the weights had.
                runner.model = runner.wrap_model(
                    runner.cfg.get('model_wrapper_cfg'), bare_model(runner.model)
                )
            yield

    def _update(self, idx: int, data_batch: Any) -> None:
        """Makes one update, between the hooks of an iteration."""
        runner = self.runner
        runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        check_batch(data_batch)
        if not self._range_is_known and not isinstance(self.adversary, NoAdversary):
            # Mosaics and mixtures have images of all kinds: once is enough.
            check_range(data_batch['inputs'], distorted=True)
            self._range_is_known = True
        method = type(self.adversary).__name__
        with (
            doing(f'making update {self._iter + 1} with {method}'),
            self.speed.on(bare_model(runner.model)),
        ):
            outputs = self.adversary.train_step(
                runner.model, runner.optim_wrapper, data_batch, self._iter
            )
        # Before the hooks: CheckpointHook saves the perturbation as of this update.
        runner.call_hook(
            'after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def _train(
        self,
        resumed: dict,
        advance: Callable[[], None],
        done: Callable[[], int],
        total: int,
    ) -> None:
        """Makes all updates and the validations between them.

        Args:
            resumed: the state of a checkpoint, empty for a new training.
            advance: makes the next epoch or update.
            done: counts the epochs or updates that have been made.
            total: number of epochs or updates.
        """
        runner = self.runner
        # Shared weights are not where the other variant of checkpoints looks for them.
        recompute = is_sharded(runner.model)
        variant = checkpoints_give_input_gradients() if recompute else nullcontext()
        with self._accelerated(), variant:
            self._guard = FiniteUpdates(
                runner.model, runner.optim_wrapper, self.max_skipped
            )
            with self._guard.active():
                # Interrupted after the checkpoint and before its validation.
                if not resumed.get('validated', True) and not self.updates_of_pass:
                    self._validate_if_due(done(), total)
                while done() < total and not self.stop_training:
                    advance()
                    self._validate_if_due(done(), total)

    def _validate_if_due(self, done: int, total: int) -> None:
        self._decide_current_val_interval()  # type: ignore[attr-defined]
        if (
            self.runner.val_loop is not None
            and done >= self.val_begin
            and (done % self.val_interval == 0 or done == total)
        ):
            self.runner.val_loop.run()
            self._guard.remember()


@LOOPS.register_module()
class AdvEpochBasedTrainLoop(_AdversarialTraining, EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop on adversarial images.

    Args:
        runner: the runner.
        dataloader: the training data loader or its config.
        max_epochs: passes over the data. With FreeAT every batch is used
            ``replays`` times in a pass, and each use counts as one iteration.
        adversary: config for the ``ADVERSARIES`` registry, for instance
            ``dict(type='mmrobust.FreeAdversary', eps=4, replays=4)``.
        max_skipped: updates whose loss or gradient is not finite are skipped; so many
            in a row end the training.
        speed: options of :class:`.Acceleration`, for updates and the
            attacks in them, for instance ``dict(autocast='bfloat16')``.
        **stock: as EpochBasedTrainLoop's (``val_begin``, ``val_interval``, ...).

    Raises:
        ConfigError: before the first update, for gradient accumulation with FreeAT,
            several optimizers, samples of several images, or a dataset without any
            box; later, for too many updates in a row that are not finite.
    """

    def run(self) -> Any:
        """Launches training."""
        self._check()
        lengths = all_gather_object(len(self.dataloader))
        if min(lengths) < max(lengths):
            raise ConfigError(
                f'the processes have from {min(lengths)} to {max(lengths)} updates per '
                'epoch, and would wait for each other in vain: set '
                'sampler.round_up=True in the train_dataloader.'
            )
        runner = self.runner
        runner.call_hook('before_train')
        resumed = self._state.restore(runner)
        self._resume_pass(resumed)
        self._train(resumed, self.run_epoch, lambda: self._epoch, self._max_epochs)
        runner.call_hook('after_train')
        return runner.model

    def run_epoch(self) -> None:
        """Makes one pass over the data, or the rest of one."""
        self.runner.call_hook('before_train_epoch')
        self._guard.remember()
        # Where the pass began, which counts as it is even if others were longer.
        self.adversary.pass_begun = self._iter - self.updates_of_pass
        self.runner.model.train()
        loader: Any = self.dataloader
        loader.start(self._epoch, self.updates_of_pass)
        for idx, data_batch in enumerate(loader, self.updates_of_pass):
            self.run_iter(idx, data_batch)
        self.updates_of_pass = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Makes one update."""
        self.updates_of_pass = idx + 1
        self._update(idx, data_batch)

    def _resume_pass(self, resumed: dict) -> None:
        """Goes on in the middle of a pass."""
        self.updates_of_pass = resumed.get('updates_of_pass', 0)
        before, now = resumed.get('length_of_pass'), len(self.dataloader)
        if self.updates_of_pass and before != now:
            raise ConfigError(
                f'the checkpoint is from the middle of a pass of {before} updates, and '
                f'a pass has {now} now: resume with the batch size, the number of '
                'processes and the data of before, or from the end of an epoch.'
            )


@LOOPS.register_module()
class AdvIterBasedTrainLoop(_AdversarialTraining, IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop on adversarial images.

    Args:
        runner: the runner.
        dataloader: the training data loader or its config.
        max_iters: updates; with FreeAT each replay of a batch is one.
        adversary: config for the ``ADVERSARIES`` registry.
        max_skipped: as :class:`AdvEpochBasedTrainLoop`'s.
        speed: see :class:`AdvEpochBasedTrainLoop`.
        **stock: as IterBasedTrainLoop's (``val_begin``, ``val_interval``, ...).

    Raises:
        ConfigError: as :class:`AdvEpochBasedTrainLoop`.
    """

    repeats_in_loader = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # mmengine 0.10.7 has begun the first pass by now, newer forks have not.
        begun = getattr(self.dataloader_iterator, '_iterator', None)  # type: ignore[has-type]
        loader: Any = self.dataloader
        self.dataloader_iterator = ReplayIterator(loader, self.adversary.replays, begun)

    def run(self) -> Any:
        """Launches training."""
        self._check()
        runner = self.runner
        runner.call_hook('before_train')
        # All of the training is one epoch to hooks, as in mmengine.
        runner.call_hook('before_train_epoch')
        self.dataloader_iterator.skip_iter(self._iter)
        resumed = self._state.restore(runner)
        self._train(resumed, self._next, lambda: self._iter, self._max_iters)
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _next(self) -> None:
        self.runner.model.train()
        self.run_iter(next(self.dataloader_iterator))

    def run_iter(self, data_batch: Any) -> None:  # type: ignore[override]
        """Makes one update."""
        self._update(self._iter, data_batch)
