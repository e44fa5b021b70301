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
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..checkpoints import check_normalization
from ..errors import ConfigError
from ..registry import ADVERSARIES, LOOPS
from .acceleration import Acceleration
from .adversaries import Adversary
from .adversaries.base import bare_model
from .hooks import AdversaryStateHook, ConvertedWeightsHook
from .preflight import check_has_boxes, gives_rgb
from .replay import ReplayDataLoader, ReplayIterator


class _AdversarialTraining:
    """What both loops share: building the adversary, and one adversarial iteration."""

    runner: Runner
    dataloader: DataLoader
    adversary: Adversary
    speed: Acceleration
    _iter: int

    def _build_loader(self, runner: Runner, dataloader: Any) -> DataLoader:
        if not isinstance(dataloader, dict):
            return dataloader
        diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
        return runner.build_dataloader(
            dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed
        )

    def _set_up(
        self, adversary: Adversary | dict, speed: Mapping[str, Any] | None
    ) -> Adversary:
        self.speed = Acceleration.read(speed)
        self.adversary = (
            ADVERSARIES.build(adversary) if isinstance(adversary, dict) else adversary
        )
        return self.adversary

    def _check(self) -> None:
        """Refuses what would silently not be the training that was asked for."""
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
        if settings := self.speed.describe():
            print_log(f'Acceleration: {settings}', logger='current')
        own = self.adversary.objective.terms is not None
        with self.speed.prepared(bare_model(runner.model), keeps_graph=own):
            if self.speed.channels_last and is_model_wrapper(runner.model):
                # Its buckets for gradients have the layout that the weights had.
                runner.model = runner.wrap_model(
                    runner.cfg.get('model_wrapper_cfg'), bare_model(runner.model)
                )
            yield

    def _run_adversarial_iter(self, idx: int, data_batch: Any) -> None:
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        with self.speed.on(bare_model(self.runner.model)):
            outputs = self.adversary.train_step(
                self.runner.model, self.runner.optim_wrapper, data_batch, self._iter
            )
        # Before the hooks: CheckpointHook saves the perturbation as of this update.
        self.runner.call_hook(
            'after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1


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
        speed: options of :class:`mmrobust.engine.Acceleration`, for updates and the
            attacks in them, for instance ``dict(autocast='bfloat16')``.
        **kwargs: as EpochBasedTrainLoop's (``val_begin``, ``val_interval``, ...).

    Raises:
        ConfigError: before the first update, for gradient accumulation with FreeAT,
            several optimizers, or a dataset without any box.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        max_epochs: int,
        adversary: Adversary | dict,
        speed: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        built = self._set_up(adversary, speed)
        loader = self._build_loader(runner, dataloader)
        # Replayed before super().__init__, which counts the iterations by its length.
        loader = ReplayDataLoader(loader, built.replays)
        super().__init__(runner, loader, max_epochs, **kwargs)
        built.updates_per_epoch = len(loader)  # type: ignore[attr-defined]
        runner.register_hook(AdversaryStateHook(built))
        runner.register_hook(ConvertedWeightsHook())

    def run(self) -> Any:
        """Launches training."""
        check_normalization(self.runner.model, gives_rgb(self.dataloader.dataset))
        self._check()
        with self._accelerated():
            return super().run()

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One update."""
        self._run_adversarial_iter(idx, data_batch)


@LOOPS.register_module()
class AdvIterBasedTrainLoop(_AdversarialTraining, IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop on adversarial images.

    Args:
        runner: the runner.
        dataloader: the training data loader or its config.
        max_iters: updates; with FreeAT each replay of a batch is one.
        adversary: config for the ``ADVERSARIES`` registry.
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
        speed: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        built = self._set_up(adversary, speed)
        loader = self._build_loader(runner, dataloader)
        super().__init__(runner, loader, max_iters, **kwargs)
        inner: Any = self.dataloader_iterator  # type: ignore[has-type]
        self.dataloader_iterator = ReplayIterator(inner, built.replays)
        built.updates_per_epoch = len(loader) * built.replays  # type: ignore[attr-defined]
        runner.register_hook(AdversaryStateHook(built))
        runner.register_hook(ConvertedWeightsHook())

    def run(self) -> Any:
        """Launches training."""
        check_normalization(self.runner.model, gives_rgb(self.dataloader.dataset))
        self._check()
        with self._accelerated():
            return super().run()

    def run_iter(self, data_batch: Any) -> None:  # type: ignore[override]
        """One update."""
        self._run_adversarial_iter(self._iter, data_batch)
