"""Adversarial train loops, by epoch and by iteration.

They call the stock ``model.train_step`` on adversarial images. That is the one seam
that works alike on one device, under DDP, with AMP, EMA, gradient clipping and compile,
and it leaves checkpoints that load in plain mmdet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..batch import check_batch
from ..blame import models_own
from ..checks.dataset import check_has_boxes, check_one_image_each, gives_rgb
from ..distributed import together
from ..errors import ConfigError
from ..evaluation.hooks import ConvertedWeightsHook
from ..objective.loss_state import Memory
from ..registry import ADVERSARIES, LOOPS
from ..utils.acceleration import Acceleration
from ..utils.models import bare_model, device_of
from ..utils.validation import positive_int
from ..weights import check_normalization
from . import Adversary, NoAdversary
from .finite_updates import Guard, finite_updates
from .replay import ReplayDataLoader, ReplayIterator
from .resuming import settle_checkpoint
from .training_state import TrainingStateHook


class _AdversarialTraining:
    """What both loops share: building the adversary, and one adversarial iteration."""

    runner: Runner
    dataloader: DataLoader
    adversary: Adversary
    max_skipped: int
    val_begin: int
    val_interval: int
    speed: Acceleration
    _guard: Guard
    _iter: int
    # How many updates of the pass that is under way have been made.
    updates_of_pass = 0

    def _build_loader(
        self, runner: Runner, dataloader: Any, times: int
    ) -> ReplayDataLoader:
        settle_checkpoint(runner)
        if isinstance(dataloader, dict):
            diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
            dataloader = runner.build_dataloader(
                dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed
            )
        return ReplayDataLoader(dataloader, times, runner.seed)

    def _check_validation(self, settings: dict[str, Any]) -> None:
        """Refuses intervals that would fail at the end of the first one."""
        for key in ('val_begin', 'val_interval'):
            if key in settings:
                settings[key] = positive_int(settings[key], key)

    def _set_up(
        self,
        adversary: Adversary | dict,
        max_skipped: int,
        speed: Mapping[str, Any] | None,
    ) -> Adversary:
        self.max_skipped = positive_int(max_skipped, 'max_skipped')
        self.speed = Acceleration.read(speed)
        self.adversary = (
            ADVERSARIES.build(adversary) if isinstance(adversary, dict) else adversary
        )
        return self.adversary

    def _check(self) -> None:
        """Refuses what would silently not be the training that was asked for."""
        if not isinstance(self.adversary, NoAdversary):
            check_one_image_each(bare_model(self.runner.model))
        wrapper = self.runner.optim_wrapper
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
        settings = self.adversary.describe()
        warmup, updates = self.adversary.warmup_iters, self.runner.max_iters
        if warmup > updates:
            raise ConfigError(
                f'warmup_iters={warmup} is more than the {updates} updates of the '
                'training, so eps would never reach its full size: make it smaller.'
            )
        restarts = settings.get('carry') == 'epoch' and settings['eps'] > 0
        if restarts and getattr(self.adversary, 'updates_per_epoch', 0) == 1:
            raise ConfigError(
                'there is one update per pass over the data, and each pass starts '
                'from a zero perturbation, so no update would be adversarial: set '
                "carry='run' or more replays."
            )
        check_has_boxes(self.dataloader.dataset, 'training')
        self.adversary.prepare(self.dataloader.dataset)
        print_log(f'Adversarial training: {settings}', logger='current')

    @contextmanager
    def _accelerated(self) -> Iterator[None]:
        """Training as ``speed`` asks for it."""
        runner, wrapper = self.runner, self.runner.optim_wrapper
        if self.speed.compile is not None and runner.cfg.get('compile'):
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
        wrapped = is_model_wrapper(runner.model)
        if self.speed.channels_last and wrapped and runner.cfg.get('compile'):
            raise ConfigError(
                'compile is lost where speed.channels_last wraps the model anew: leave '
                'one of them out.'
            )
        if settings := self.speed.describe():
            print_log(f'Acceleration: {settings}', logger='current')
        own = self.adversary.objective.terms is not None
        with self.speed.prepared(bare_model(runner.model), keeps_graph=own):
            if self.speed.channels_last and wrapped:
                # Its buckets for gradients have the layout that the weights had.
                runner.model = runner.wrap_model(
                    runner.cfg.get('model_wrapper_cfg'), bare_model(runner.model)
                )
            yield

    @contextmanager
    def _steady(self) -> Iterator[None]:
        """The frame of all updates."""
        with self._accelerated():
            runner = self.runner
            with finite_updates(
                runner.model, runner.optim_wrapper, self.max_skipped
            ) as self._guard:
                yield

    def _run_adversarial_iter(self, idx: int, data_batch: Any) -> None:
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        check_batch(data_batch)
        try:
            with self.speed.on(bare_model(self.runner.model)):
                outputs = self.adversary.train_step(
                    self.runner.model, self.runner.optim_wrapper, data_batch, self._iter
                )
        except ConfigError:
            raise
        except Exception as error:
            self._try_without_attack(data_batch, error)
            raise
        # Before the hooks: CheckpointHook saves the perturbation as of this update.
        self.runner.call_hook(
            'after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def _try_without_attack(self, data_batch: Any, error: Exception) -> None:
        """Tells after a failure whether the model fails on the batch as it is, too.

        Raises:
            ModelError: if it does.
        """
        model = bare_model(self.runner.model)
        gone = device_of(model).type != 'cpu' and isinstance(error, RuntimeError)
        if get_world_size() > 1 or gone:
            return  # others would be waited for, or the device may answer no more
        memory = Memory(model, normalisations=True)
        try:
            with models_own(), torch.no_grad():
                data = model.data_preprocessor(data_batch, True)
                model.parse_losses(model(**data, mode='loss'))
        finally:
            memory.restore(thorough=True)

    def _add_hooks(self, runner: Runner, updates_per_epoch: int) -> None:
        self.adversary.updates_per_epoch = updates_per_epoch  # type: ignore[attr-defined]
        self._state = TrainingStateHook(self.adversary)
        runner.register_hook(self._state, priority=self._state.priority)
        runner.register_hook(ConvertedWeightsHook())

    def _validate_if_due(self, done: int, total: int) -> None:
        self._decide_current_val_interval()  # type: ignore[attr-defined]
        if (
            self.runner.val_loop is not None
            and done >= self.val_begin
            and (done % self.val_interval == 0 or done == total)
        ):
            self.runner.val_loop.run()
            self._guard.remember()

    def _make_up_validation(self, resumed: dict, done: int, total: int) -> None:
        """Validates if training was interrupted after the checkpoint and before."""
        if 'validated' in resumed and not (
            resumed['validated'] or self.updates_of_pass
        ):
            self._validate_if_due(done, total)


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
        **kwargs: as EpochBasedTrainLoop's (``val_begin``, ``val_interval``, ...).

    Raises:
        ConfigError: before the first update, for gradient accumulation with FreeAT,
            several optimizers, samples of several images, or a dataset without any
            box; later, for too many updates in a row that are not finite.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        max_epochs: int,
        adversary: Adversary | dict,
        max_skipped: int = 20,
        speed: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        max_epochs = positive_int(max_epochs, 'max_epochs')
        self._check_validation(kwargs)
        built = self._set_up(adversary, max_skipped, speed)
        # Replayed before super().__init__, which counts the iterations by its length.
        loader = self._build_loader(runner, dataloader, built.replays)
        super().__init__(runner, loader, max_epochs, **kwargs)
        self._add_hooks(runner, len(loader))

    @together()
    def run(self) -> Any:
        """Launches training."""
        check_normalization(self.runner.model, gives_rgb(self.dataloader.dataset))
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
        with self._steady():
            self._make_up_validation(resumed, self._epoch, self._max_epochs)
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._validate_if_due(self._epoch, self._max_epochs)
        runner.call_hook('after_train')
        return runner.model

    def run_epoch(self) -> None:
        """One pass over the data, or what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self._guard.remember()
        # Where the pass began, which counts as it is even if others were longer.
        begun = self._iter - self.updates_of_pass
        self.adversary.pass_begun = begun  # type: ignore[attr-defined]
        self.runner.model.train()
        loader: Any = self.dataloader
        loader.start(self._epoch, self.updates_of_pass)
        for idx, data_batch in enumerate(loader, self.updates_of_pass):
            self.run_iter(idx, data_batch)
        self.updates_of_pass = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One update."""
        self.updates_of_pass = idx + 1
        self._run_adversarial_iter(idx, data_batch)

    def _resume_pass(self, resumed: dict) -> None:
        """Goes on in the middle of a pass."""
        self.updates_of_pass = resumed.get('updates_of_pass', 0)
        if self.updates_of_pass == 0:
            return
        before, now = resumed['length_of_pass'], len(self.dataloader)
        if before != now:
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
        **kwargs: as IterBasedTrainLoop's (``val_begin``, ``val_interval``, ...).

    Raises:
        ConfigError: as :class:`AdvEpochBasedTrainLoop`.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        max_iters: int,
        adversary: Adversary | dict,
        max_skipped: int = 20,
        speed: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        max_iters = positive_int(max_iters, 'max_iters')
        self._check_validation(kwargs)
        built = self._set_up(adversary, max_skipped, speed)
        loader = self._build_loader(runner, dataloader, 1)
        super().__init__(runner, loader, max_iters, **kwargs)
        # mmengine 0.10.7 has begun the first pass by now, newer forks have not.
        begun = getattr(self.dataloader_iterator, '_iterator', None)  # type: ignore[has-type]
        self.dataloader_iterator = ReplayIterator(loader, built.replays, begun)
        self._add_hooks(runner, len(loader) * built.replays)

    @together()
    def run(self) -> Any:
        """Launches training."""
        check_normalization(self.runner.model, gives_rgb(self.dataloader.dataset))
        self._check()
        runner = self.runner
        runner.call_hook('before_train')
        # All of the training is one epoch to hooks, as in mmengine.
        runner.call_hook('before_train_epoch')
        self.dataloader_iterator.skip_iter(self._iter)
        resumed = self._state.restore(runner)
        with self._steady():
            self._make_up_validation(resumed, self._iter, self._max_iters)
            while self._iter < self._max_iters and not self.stop_training:
                runner.model.train()
                self.run_iter(next(self.dataloader_iterator))
                self._validate_if_due(self._iter, self._max_iters)
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def run_iter(self, data_batch: Any) -> None:  # type: ignore[override]
        """One update."""
        self._run_adversarial_iter(self._iter, data_batch)
