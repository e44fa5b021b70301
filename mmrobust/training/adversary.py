"""The base class of all training methods, and the method that attacks nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ..batch import with_samples
from ..errors import ConfigError
from ..objective import (
    Objective,
    class_weights,
    classes_of,
    count_classes,
    is_classifier,
    mixed_first,
    weighted_classification_loss,
)
from ..registry import ADVERSARIES
from ..threat import ThreatModel
from ..utils.models import bare_model
from ..utils.seeding import derive_seed
from .awp import worse_weights


class Adversary(ABC):
    """Makes a batch adversarial and lets the stock ``model.train_step`` learn from it.

    To add a training method, subclass this class, implement :meth:`update` and register
    the class in ``ADVERSARIES``, so that ``train_cfg.adversary.type`` can name it.
    Inside :meth:`update` the method has :meth:`threat_at` (the ball of this update),
    :meth:`chosen` (the images to attack) and :attr:`objective` (the loss to raise). A
    method that carries something from update to update saves it in :meth:`state_dict`,
    a method with settings of its own adds them to :meth:`describe`. If the method is
    "attack the batch, then update on it", subclass :class:`.AttackAdversary` instead
    and hand over the attack.

    Args:
        threat: norm and full radius of the perturbations, in pixel units of 0-255.
        objective: what the perturbation raises, see :class:`.Objective`. The update
            itself is always made on the detector's own loss. A method that attacks each
            batch first knows them all but ``'cwa'``; one whose update moves the
            perturbation, too, only ``'total'``, ``'cls'``, ``'reg'``, ``'cls+reg'`` and
            lists of loss names.
        warmup_iters: updates over which eps grows linearly to its full size.
        share: probability in (0, 1] that an image of a batch is adversarial; the
            others are learnt from as they are. Drawn anew for every batch, from the
            run's seed.
        class_weighting: ``'batch'`` weights the classification losses of every class,
            in the attack and in the update, by the inverse of its number of objects
            in the batch (of all processes), ``'dataset'`` of that in the training
            set; None does not.
        awp_gamma: size of an adversarial perturbation of the weights, as a share of
            theirs, at which the update takes its gradients (0 for none, 0.005 in the
            paper): see :func:`.worse_weights`. It grows with eps.

    Attributes:
        replays: how often the loop hands over each batch.
        updates_per_epoch: updates in a pass over the data; the loop sets it.
        pass_begun: number of the first update of the current pass; the loop sets it.

    Raises:
        ConfigError: for a setting that is unknown or out of range.
    """

    replays = 1
    updates_per_epoch = 0
    pass_begun = 0
    # A classifier's MixUp and CutMix come before the attack.
    _mixes_first = True
    # The attack asks for losses apart from the update, and may so ask for others.
    _attacks_first = False

    def __init__(
        self,
        threat: ThreatModel,
        objective: Objective,
        warmup_iters: int = 0,
        share: float = 1.0,
        class_weighting: str | None = None,
        awp_gamma: float = 0.0,
    ) -> None:
        self.norm, self.eps = threat.norm, threat.eps
        self.objective = objective
        if warmup_iters < 0:
            raise ConfigError(f'warmup_iters={warmup_iters} must not be negative.')
        if not 0 < share <= 1:
            raise ConfigError(
                f'share={share!r} must be above 0 and at most 1: it is the part of the '
                'images that are adversarial (NoAdversary trains without).'
            )
        if class_weighting not in (None, 'batch', 'dataset'):
            raise ConfigError(
                f"class_weighting={class_weighting!r} is unknown: choose 'batch', "
                "'dataset' or None."
            )
        if not isinstance(awp_gamma, (int, float)) or not 0 <= awp_gamma < 1:
            raise ConfigError(
                f'awp_gamma={awp_gamma!r} must be from 0 to below 1: it is the size of '
                "the weights' perturbation as a share of theirs, like 0.005."
            )
        self.awp_gamma = awp_gamma
        self.warmup_iters = warmup_iters
        self.share = share
        self.class_weighting = class_weighting
        self._check_objective(objective)
        self._dataset: Any = None
        self._dataset_weights: Tensor | None = None

    def _check_objective(self, objective: Objective) -> None:
        """Refuses an objective that the method cannot train against."""
        if objective.needs_class_weights:
            raise ConfigError(
                "the objective 'cwa' is an attack for evaluation: train with 'cls+reg' "
                "and class_weighting='dataset'."
            )
        if objective.changes_losses and not self._attacks_first:
            raise ConfigError(
                f'the objective {objective.name!r} needs losses of its own, and '
                f'{type(self).__name__} moves the perturbation by those that the '
                "weights learn from: use 'total' or names of loss terms, or "
                'PGDAdversary.'
            )
        if objective.changes_losses and self.class_weighting is not None:
            raise ConfigError(
                f'class_weighting and the objective {objective.name!r} would change '
                'the same losses: leave one of them out.'
            )

    def prepare(self, dataset: Any) -> None:
        """Takes the training set, before the first update.

        Raises:
            ConfigError: for a training in which the method would do nothing.
        """
        self._dataset = dataset

    def threat_at(self, iteration: int) -> ThreatModel:
        """Returns the threat model of an update, smaller while eps warms up."""
        return ThreatModel(self.norm, self.eps * self.warmth(iteration))

    def warmth(self, iteration: int) -> float:
        """Returns which share of its full size eps has reached."""
        return min(1.0, (iteration + 1) / max(self.warmup_iters, 1))

    def chosen(self, iteration: int, count: int) -> list[int]:
        """Returns which of ``count`` images to attack; the same for all replays."""
        if self.share == 1:
            return list(range(count))
        generator = torch.Generator().manual_seed(self._seed('share', iteration))
        draws = torch.rand(count, generator=generator)
        return (draws < self.share).nonzero().flatten().tolist()

    def _seed(self, purpose: str, iteration: int) -> int:
        batch = iteration // self.replays
        return derive_seed(purpose, torch.initial_seed(), get_rank(), batch)

    def train_step(
        self, model: Any, optim_wrapper: OptimWrapper, data_batch: dict, iteration: int
    ) -> dict[str, Tensor]:
        """Runs :meth:`update` under class weights and on mixed images, where asked for.

        Loops call this; arguments and result are those of :meth:`update`.
        """
        bare = bare_model(model)
        with self._weighted(bare, data_batch):
            if not self._mixes_first:
                return self.update(model, optim_wrapper, data_batch, iteration)
            with mixed_first(bare, data_batch, self._seed('mix', iteration)) as mixed:
                return self.update(model, optim_wrapper, mixed, iteration)

    @abstractmethod
    def update(
        self, model: Any, optim_wrapper: OptimWrapper, data_batch: dict, iteration: int
    ) -> dict[str, Tensor]:
        """Perturbs the images of a batch and updates the weights once.

        Args:
            model: the model or its distributed wrapper, in training mode; it has to be
                in it at the end, too.
            optim_wrapper: updates the weights.
            data_batch: the loader's batch: ``inputs``, images (C, H, W) in pixel units
                of 0-255, and ``data_samples``. It must not be changed, as replays and
                hooks see it again: :func:`.float_images` copies its images and
                :func:`.with_images` puts others in their place.
            iteration: number of updates made so far.

        Returns:
            The log variables that ``model.train_step`` returned.
        """

    @contextmanager
    def learning(
        self, model: Any, optim_wrapper: OptimWrapper, data_batch: dict, iteration: int
    ) -> Iterator[None]:
        """Stands around the update on a batch that was perturbed.

        Every method learns inside of it, so that what changes updates (AWP) goes with
        all of them.

        Args:
            model: see :meth:`update`.
            optim_wrapper: see :meth:`update`.
            data_batch: the batch that the update learns from.
            iteration: see :meth:`update`.
        """
        if not self.awp_gamma:
            yield
            return
        gamma = self.awp_gamma * self.warmth(iteration)
        with worse_weights(model, optim_wrapper, data_batch, gamma):
            yield

    @contextmanager
    def _weighted(self, model: nn.Module, data_batch: dict) -> Iterator[None]:
        if self.class_weighting is None:
            yield
            return
        if is_classifier(model):
            raise ConfigError(
                'class_weighting counts the objects of a detector: leave it out for a '
                'classifier.'
            )
        samples = with_samples(data_batch)['data_samples']
        num_classes = classes_of(model, samples)
        if self.class_weighting == 'batch':
            counts = torch.zeros(num_classes)
            for sample in samples:
                labels = sample.gt_instances.labels.cpu()
                counts += torch.bincount(labels, minlength=num_classes)
            all_reduce(counts)  # the batch is that of all processes
            weights = class_weights(counts.tolist())
        else:
            if self._dataset_weights is None:
                counted = count_classes([self._dataset], num_classes)
                self._dataset_weights = class_weights(counted)
            weights = self._dataset_weights
        with weighted_classification_loss(model, weights):
            yield

    def state_dict(self, iteration: int) -> dict[str, Any]:
        """Returns what has to be saved to go on exactly after ``iteration`` updates.

        Tensors, numbers, strings, lists and dicts, so that checkpoints load without
        pickled code.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restores what :meth:`state_dict` returned."""

    def describe(self) -> dict[str, Any]:
        """Returns the settings that define the method, for every checkpoint's meta."""
        return {
            'type': type(self).__name__,
            'norm': self.norm,
            'eps': self.eps,
            'objective': self.objective.name,
            'replays': self.replays,
            'warmup_iters': self.warmup_iters,
            'share': self.share,
            'class_weighting': self.class_weighting,
            **({'awp_gamma': self.awp_gamma} if self.awp_gamma else {}),
        }


@ADVERSARIES.register_module()
class NoAdversary(Adversary):
    """Standard training in the same loop: the control of an experiment.

    The update is the stock one, bit for bit.
    """

    _mixes_first = False

    def __init__(self) -> None:
        super().__init__(ThreatModel('linf', 0.0), Objective())

    def update(
        self, model: Any, optim_wrapper: OptimWrapper, data_batch: dict, iteration: int
    ) -> dict[str, Tensor]:
        """See :meth:`Adversary.update`."""
        return model.train_step(data_batch, optim_wrapper=optim_wrapper)
