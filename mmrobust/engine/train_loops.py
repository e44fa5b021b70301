"""Adversarial train loops, by epoch and by iteration.

They call the stock ``model.train_step`` on adversarial images. That is the one seam
that works alike on one device, under DDP, with AMP, EMA, gradient clipping and compile,
and it leaves checkpoints that load in plain mmdet.
"""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..attacks.base import positive_int
from ..batch import check_batch
from ..blame import models_own
from ..checkpoints import check_normalization
from ..errors import ConfigError
from ..registry import ADVERSARIES, LOOPS
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
    _iter: int

    def _build_loader(self, runner: Runner, dataloader: Any) -> DataLoader:
        if not isinstance(dataloader, dict):
            return dataloader
        diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
        return runner.build_dataloader(
            dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed
        )

    def _check_validation(self, settings: dict[str, Any]) -> None:
        """Refuses intervals that would fail at the end of the first one."""
        for key in ('val_begin', 'val_interval'):
            if key in settings:
                settings[key] = positive_int(settings[key], key)

    def _set_up(self, adversary: Adversary | dict) -> Adversary:
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

    def _run_adversarial_iter(self, idx: int, data_batch: Any) -> None:
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        check_batch(data_batch)
        try:
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
            ConfigError: if it does. Nothing is lost by the update, as all is lost.
        """
        if get_world_size() > 1 or 'CUDA' in str(error):
            return  # others would be waited for, or the device answers no more
        model = bare_model(self.runner.model)
        with models_own():
            model.train_step(data_batch, optim_wrapper=self.runner.optim_wrapper)


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
        **kwargs: Any,
    ) -> None:
        max_epochs = positive_int(max_epochs, 'max_epochs')
        self._check_validation(kwargs)
        built = self._set_up(adversary)
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
        **kwargs: Any,
    ) -> None:
        max_iters = positive_int(max_iters, 'max_iters')
        self._check_validation(kwargs)
        built = self._set_up(adversary)
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
        return super().run()

    def run_iter(self, data_batch: Any) -> None:  # type: ignore[override]
        """One update."""
        self._run_adversarial_iter(self._iter, data_batch)
