"""What every training method is, and the one that leaves images as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ..errors import ConfigError
from ..objective import Objective
from ..objective.class_weights import (
    class_weights,
    classes_of,
    count_classes,
    weighted_classification_loss,
)
from ..objective.classifier import is_classifier, mixed_first
from ..registry import ADVERSARIES
from ..threat import ThreatModel, to_pixels
from ..utils.models import bare_model
from ..utils.seeding import derive_seed

CLASS_WEIGHTINGS = (None, 'batch', 'dataset')


class Adversary(ABC):
    """Makes a batch adversarial and lets the stock ``model.train_step`` learn from it.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255, or text like ``'4/255'``.
        objective: what the perturbation maximises; ``'total'``, ``'cls'``, ``'reg'``,
            ``'cls+reg'`` or names of loss terms.
        warmup_iters: iterations over which eps grows linearly to its full size.
        share: probability in (0, 1] that an image of a batch is adversarial; the
            others are learnt from as they are. Drawn anew for every batch, from the
            run's seed.
        class_weighting: ``'batch'`` weights the classification losses of every class,
            in the attack and in the update, by the inverse of its number of objects
            in the batch (of all processes), ``'dataset'`` of that in the training
            set; None does not.

    Raises:
        ConfigError: for a setting that is unknown or out of range.

    Attributes:
        replays: how often the loop hands over each batch.
    """

    replays = 1
    # Whether a classifier's MixUp and CutMix come before the attack.
    _mixes_first = True

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        objective: str | Sequence[str] = 'total',
        warmup_iters: int = 0,
        share: float = 1.0,
        class_weighting: str | None = None,
    ) -> None:
        self.norm = norm
        self.eps = ThreatModel(norm, to_pixels(eps, norm=norm)).eps
        self.objective = Objective(objective)
        if self.objective.needs_class_weights:
            raise ConfigError(
                "the objective 'cwa' is an attack for evaluation; train with "
                "class_weighting='dataset' and the objective 'cls+reg' instead."
            )
        if self.objective.changes_losses:
            raise ConfigError(
                f'the objective {self.objective.name!r} is an attack for evaluation: '
                "train with 'total' or names of loss terms."
            )
        if warmup_iters < 0:
            raise ConfigError(f'warmup_iters={warmup_iters} must not be negative.')
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigError(
                f'share={share!r} must be above 0 and at most 1: it is the part of the '
                'images that are adversarial (NoAdversary trains without).'
            )
        if class_weighting not in CLASS_WEIGHTINGS:
            raise ConfigError(
                f"class_weighting={class_weighting!r} is unknown: choose 'batch', "
                "'dataset' or None."
            )
        self.warmup_iters = warmup_iters
        self.share = share
        self.class_weighting = class_weighting
        self._dataset: Any = None
        self._dataset_weights: Tensor | None = None

    def prepare(self, dataset: Any) -> None:
        """Shows the training set, before the first update."""
        self._dataset = dataset

    def threat_at(self, iteration: int) -> ThreatModel:
        """The threat model of an iteration, smaller while eps warms up."""
        share = min(1.0, (iteration + 1) / max(self.warmup_iters, 1))
        return ThreatModel(self.norm, self.eps * share)

    def chosen(self, iteration: int, count: int) -> list[bool]:
        """Which images of a batch are adversarial; the same for all its replays."""
        if self.share == 1:
            return [True] * count
        seed = derive_seed(
            'share', torch.initial_seed(), get_rank(), iteration // self.replays
        )
        draws = torch.rand(count, generator=torch.Generator().manual_seed(seed))
        return (draws < self.share).tolist()

    def train_step(
        self,
        model: Any,
        optim_wrapper: OptimWrapper,
        data_batch: dict,
        iteration: int,
    ) -> dict[str, Tensor]:
        """Perturbs the batch and updates the weights once.

        Args:
            model: the detector or its distributed wrapper, in training mode.
            optim_wrapper: updates the weights.
            data_batch: what the loader yields; it is not changed.
            iteration: number of updates made so far.

        Returns:
            The log variables of ``model.train_step``.
        """
        bare = bare_model(model)
        seed = derive_seed(
            'mix', torch.initial_seed(), get_rank(), iteration // self.replays
        )
        with self._weighted(bare, data_batch):
            if not self._mixes_first:
                return self._train_step(model, optim_wrapper, data_batch, iteration)
            with mixed_first(bare, data_batch, seed) as mixed:
                return self._train_step(model, optim_wrapper, mixed, iteration)

    @abstractmethod
    def _train_step(
        self,
        model: Any,
        optim_wrapper: OptimWrapper,
        data_batch: dict,
        iteration: int,
    ) -> dict[str, Tensor]:
        """See :meth:`train_step`; class weights are in force."""

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
        num_classes = classes_of(model)
        if self.class_weighting == 'batch':
            counts = torch.zeros(num_classes)
            for sample in data_batch['data_samples']:
                labels = sample.gt_instances.labels.cpu()
                counts += torch.bincount(labels, minlength=num_classes)
            all_reduce(counts)  # the batch is that of all processes
            weights = class_weights(counts.tolist())
        else:
            if self._dataset_weights is None:
                if self._dataset is None:
                    raise ConfigError(
                        "class_weighting='dataset' needs the training set: call "
                        'prepare(dataset) first.'
                    )
                counted = count_classes([self._dataset], num_classes)
                self._dataset_weights = class_weights(counted)
            weights = self._dataset_weights
        with weighted_classification_loss(model, weights):
            yield

    def state_dict(self, iteration: int) -> dict[str, Any]:
        """What has to be saved to continue exactly after ``iteration`` updates."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restores what :meth:`state_dict` gave."""

    def describe(self) -> dict[str, Any]:
        """The settings that define the adversary, kept in every checkpoint's meta."""
        return {
            'type': type(self).__name__,
            'norm': self.norm,
            'eps': self.eps,
            'objective': self.objective.name,
            'replays': self.replays,
            'warmup_iters': self.warmup_iters,
            'share': self.share,
            'class_weighting': self.class_weighting,
        }


@ADVERSARIES.register_module()
class NoAdversary(Adversary):
    """Standard training in the same loop: the control of an experiment.

    The update is the stock one, bit for bit.
    """

    _mixes_first = False

    def __init__(self) -> None:
        super().__init__(eps=0)

    def _train_step(
        self,
        model: Any,
        optim_wrapper: OptimWrapper,
        data_batch: dict,
        iteration: int,
    ) -> dict[str, Tensor]:
        return model.train_step(data_batch, optim_wrapper=optim_wrapper)
