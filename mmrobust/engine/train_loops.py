"""Adversarial train loops, by epoch and by iteration.

They call the stock ``model.train_step`` on adversarial images. That is the one seam
that works alike on one device, under DDP, with AMP, EMA, gradient clipping and compile,
and it leaves checkpoints that load in plain mmdet.
"""

from __future__ import annotations

from typing import Any

from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..attacks.base import positive_int
from ..checkpoints import check_normalization
from ..errors import ConfigError
from ..processes import together
from ..registry import ADVERSARIES, LOOPS
from .adversaries import Adversary, NoAdversary
from .adversaries.base import bare_model
from .guard import finite_updates
from .hooks import AdversaryStateHook, ConvertedWeightsHook
from .preflight import check_has_boxes, check_one_image_each, gives_rgb
from .replay import ReplayDataLoader, ReplayIterator


class _AdversarialTraining:
    """What both loops share: building the adversary, and one adversarial iteration."""

    runner: Runner
    dataloader: DataLoader
    adversary: Adversary
    max_skipped: int
    _iter: int

    def _build_loader(self, runner: Runner, dataloader: Any) -> DataLoader:
        if not isinstance(dataloader, dict):
            return dataloader
        diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
        return runner.build_dataloader(
            dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed
        )

    def _set_up(self, adversary: Adversary | dict, max_skipped: int) -> Adversary:
        self.max_skipped = positive_int(max_skipped, 'max_skipped')
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

    def _run_adversarial_iter(self, idx: int, data_batch: Any) -> None:
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
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
        max_skipped: updates whose loss or gradient is not finite are skipped; so many
            in a row end the training.
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
        **kwargs: Any,
    ) -> None:
        built = self._set_up(adversary, max_skipped)
        loader = self._build_loader(runner, dataloader)
        # Replayed before super().__init__, which counts the iterations by its length.
        loader = ReplayDataLoader(loader, built.replays)
        super().__init__(runner, loader, max_epochs, **kwargs)
        built.updates_per_epoch = len(loader)  # type: ignore[attr-defined]
        runner.register_hook(AdversaryStateHook(built))
        runner.register_hook(ConvertedWeightsHook())

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
        with finite_updates(runner.model, runner.optim_wrapper, self.max_skipped):
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
        max_skipped: as :class:`AdvEpochBasedTrainLoop`'s.
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
        **kwargs: Any,
    ) -> None:
        built = self._set_up(adversary, max_skipped)
        loader = self._build_loader(runner, dataloader)
        super().__init__(runner, loader, max_iters, **kwargs)
        inner: Any = self.dataloader_iterator  # type: ignore[has-type]
        self.dataloader_iterator = ReplayIterator(inner, built.replays)
        built.updates_per_epoch = len(loader) * built.replays  # type: ignore[attr-defined]
        runner.register_hook(AdversaryStateHook(built))
        runner.register_hook(ConvertedWeightsHook())

    @together()
    def run(self) -> Any:
        """Launches training."""
        check_normalization(self.runner.model, gives_rgb(self.dataloader.dataset))
        self._check()
        runner = self.runner
        with finite_updates(runner.model, runner.optim_wrapper, self.max_skipped):
            return super().run()

    def run_iter(self, data_batch: Any) -> None:  # type: ignore[override]
        """One update."""
        self._run_adversarial_iter(self._iter, data_batch)
