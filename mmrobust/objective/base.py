"""The scalar that an attack maximises, made of a detector's losses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.validation import did_you_mean
from .class_weights import classes_of, weighted_classification_loss
from .ground_truth import (
    likely_classes,
    next_classes,
    relabelled,
    without_objects,
)
from .kinds import NAMED, TARGETS, Kind
from .scores import (
    log_background,
    margin,
    measured,
    negatives_unmined,
    ranking_of_assigned,
)

# Denoising queries are built from the ground truth and from random noise: a loss on
# them leaks the labels and differs between two calls.
_DENOISING = 'dn_'


class Objective:
    """A scalar to maximise, made of a detector's losses; larger is a stronger attack.

    Args:
        terms: a name of :data:`NAMED`, see docs/attacks.md; or names of loss terms, to
            be raised. A name matches exactly; if none does, it matches behind a stage
            prefix, so that ``loss_cls`` finds the ``s0.loss_cls`` of a cascade and the
            ``stage0_loss_cls`` of Sparse R-CNN. Or a mapping with the ``name`` and the
            other arguments, for configs: ``dict(name='dag', target='next')``.
        class_weights: weights (num_classes,) for ``'cwa'``.
        target: for ``'mislabel'`` and ``'dag'``, the class that each class in an image
            is to become: of the other classes the ``'most-likely'`` (default) or
            ``'least-likely'`` one on the clean image, averaged over the predictions
            assigned to objects of the class; or the ``'next'`` one by number, which
            needs no prediction.
        target_class: the class of ``'targeted'``, by number or by name. Also of
            ``'dag'``, in place of ``target``.

    Attributes:
        terms: names of loss terms, a pattern of names, or None for every loss.
        changes_losses: whether it needs more of the model than its losses on the own
            ground truth, so that :meth:`__call__` alone is not the objective.
        reads: ``'losses'``, or what :class:`mmrobust.objective.predictions.
            PredictionOracle` reads of predictions, ``'ranking'`` or ``'count'``.
        class_names: names of the classes, by which a ``target_class`` is found.

    Raises:
        ConfigError: for an unknown name or an argument that does not go with it.
    """

    def __init__(
        self,
        terms: str | Sequence[str] | Mapping[str, Any] = 'total',
        class_weights: Tensor | None = None,
        target: str | None = None,
        target_class: int | str | None = None,
    ) -> None:
        if isinstance(terms, Mapping):
            settings = {'target': target, 'target_class': target_class, **terms}
            terms = settings.pop('name', 'total')
            target = settings.pop('target')
            target_class = settings.pop('target_class')
            if settings:
                raise ConfigError(
                    f'objective has the unknown setting {next(iter(settings))!r}: it '
                    'takes name, target and target_class.'
                )
        if isinstance(terms, str) and terms not in NAMED:
            raise ConfigError(
                f'objective={terms!r} is unknown{did_you_mean(terms, NAMED)}: choose '
                f'one of {", ".join(NAMED)}, or '
                "a list of loss names such as ['loss_cls', 'loss_bbox']."
            )
        if not isinstance(terms, str) and not terms:
            raise ConfigError("objective=[] is empty: name loss terms, or use 'total'.")
        self.name = terms if isinstance(terms, str) else '+'.join(terms)
        self._kind = NAMED[terms] if isinstance(terms, str) else Kind(tuple(terms))
        self.terms = self._kind.terms
        self.needs_class_weights = self._kind.scores == 'weighted'
        self.class_weights = class_weights
        self.reads = self._kind.reads
        self.changes_losses = bool(
            self._kind.scores
            or self._kind.truth != 'own'
            or self._kind.sign < 0
            or self.reads != 'losses'
        )
        self.class_names: Sequence[str] | None = None
        self._set_target(target, target_class)

    def _set_target(self, target: str | None, target_class: int | str | None) -> None:
        default = self._kind.target
        if target is not None and default not in TARGETS:
            raise ConfigError(
                f'the objective {self.name!r} has no target: only mislabel and dag do.'
            )
        if target_class is not None and self.name not in ('targeted', 'dag'):
            raise ConfigError(
                f'the objective {self.name!r} has no target_class: use targeted.'
            )
        if target is not None and target_class is not None:
            raise ConfigError('target and target_class exclude each other.')
        if default == 'given' and target_class is None:
            raise ConfigError(
                "the objective 'targeted' needs the class that objects are to be taken "
                "for: give target_class, for instance 'person' or 0."
            )
        if target is not None and target not in TARGETS:
            raise ConfigError(
                f'target={target!r} is unknown: choose one of {", ".join(TARGETS)}.'
            )
        self.target = (target or default) if target_class is None else 'given'
        self.target_class = target_class
        if target is not None or target_class is not None:
            chosen = target if target_class is None else target_class
            self.name = f'{self.name}({chosen})'

    def without_predictions(self) -> None:
        """Reads class scores where losses are computed, in place of predictions."""
        self.reads = 'losses'
        self.name = f'{self.name}(assigned)'

    def __call__(self, losses: dict[str, Any]) -> Tensor:
        """Sums the selected losses as ``parse_losses`` would, with the sign.

        Args:
            losses: name to scalar, tensor or list of tensors, from
                ``model(..., mode='loss')``.

        Raises:
            ConfigError: if a named term does not exist.
        """
        values = [part.mean().float() for part in self.parts(losses)]
        return self._kind.sign * torch.stack(values).sum()

    def parts(self, losses: dict[str, Any]) -> list[Tensor]:
        """Returns the tensors of the losses that belong to the objective."""
        found = [losses[key] for key in self.select(losses)]
        lists = (loss if isinstance(loss, (list, tuple)) else [loss] for loss in found)
        return [part for each in lists for part in each]

    def select(self, losses: dict[str, Any]) -> list[str]:
        """Returns the names of the losses that belong to the objective."""
        known = [
            key
            for key in losses
            if 'loss' in key and not key.split('.')[-1].startswith(_DENOISING)
        ]
        if self.terms is None:
            return known
        if isinstance(self.terms, re.Pattern):
            found = [key for key in known if self.terms.fullmatch(key)]
            if not found:
                raise ConfigError(
                    f'the objective {self.name!r} is not for this model, which has no '
                    f'{self._kind.lacking}: its losses are {", ".join(known)}.'
                )
            return found
        selected: list[str] = []
        for term in self.terms:
            matches = [key for key in known if key == term]
            stage = re.compile(rf's(tage)?\d+[._]{re.escape(term)}')
            matches = matches or [key for key in known if stage.fullmatch(key)]
            if not matches:
                raise ConfigError(
                    f'the model has no loss named {term!r} for the objective '
                    f'{self.name!r}: it has {", ".join(known)}; use the objective '
                    "'total' or a list of these names."
                )
            selected.extend(matches)
        return selected

    def targets(
        self,
        model: nn.Module,
        scores: Callable[[], Tensor] | None = None,
        samples: Sequence[Any] = (),
    ) -> Tensor | None:
        """Returns the class that each class is to become.

        Args:
            model: the bare detector.
            scores: gives the class scores (num_classes, num_classes) of the clean
                image, see :func:`ground_truth.likely_classes`.
            samples: the images, by whose text some detectors know their classes.

        Returns:
            Classes (num_classes,), or None where no label changes.

        Raises:
            ConfigError: if there is no such class, or only one.
        """
        if self.target is None:
            return None
        count = classes_of(model, samples)
        if self.target == 'given':
            return torch.full((count,), self._target_index(count))
        if count < 2:
            raise ConfigError(
                f'the objective {self.name!r} needs a second class, and the model has '
                'one only: use vanish or background.'
            )
        if self.target == 'next' or scores is None:
            return next_classes(count)
        return likely_classes(scores(), least=self.target == 'least-likely')

    def _target_index(self, count: int) -> int:
        wanted, names = self.target_class, self.class_names
        if isinstance(wanted, str) and not wanted.isdecimal():
            if names is None:
                raise ConfigError(
                    f'target_class={wanted!r}: the names of the classes are not known '
                    'here, give its number.'
                )
            if wanted not in names:
                raise ConfigError(
                    f'target_class={wanted!r} is no class of the data: choose from '
                    f'{", ".join(names)}.'
                )
            return list(names).index(wanted)
        index = int(wanted)  # type: ignore[arg-type]
        if not 0 <= index < count:
            raise ConfigError(
                f'target_class={wanted!r} is out of range: the model has the classes '
                f'0 to {count - 1}.'
            )
        return index

    def on(self, samples: Sequence[Any]) -> Objective:
        """Returns what to maximise on images: false detections, if no object is there.

        COCO counts these against a detector as it does a lost object, and an objective
        about objects would be 0 there, or even lower them.
        """
        objects = (sample.get('gt_instances') for sample in samples)
        if self._kind.of_objects and all(
            each is not None and not len(each) for each in objects
        ):
            return _WITHOUT_OBJECTS
        return self

    def truth(self, sample: Any, targets: Tensor | None) -> Any:
        """Returns the ground truth that losses are asked on, and keeps ``sample``."""
        if self._kind.truth == 'none':
            return without_objects(sample)
        if self._kind.truth == 'relabelled' and targets is not None:
            return relabelled(sample, targets)
        return sample

    @contextmanager
    def attached(
        self, model: nn.Module, targets: Tensor | None = None
    ) -> Iterator[None]:
        """Changes the classification losses of ``model``, where asked for."""
        kind = self._kind
        context: AbstractContextManager[None]
        if kind.scores == 'weighted':
            if self.class_weights is None:
                raise ConfigError("the objective 'cwa' needs class weights.")
            context = weighted_classification_loss(model, self.class_weights)
        elif kind.scores == 'background':
            context = measured(model, log_background)
        elif kind.scores == 'margin' and targets is not None:
            context = measured(model, partial(margin, targets=targets))
        elif kind.scores == 'ranking':
            context = measured(model, ranking_of_assigned, whole=True)
        elif kind.truth == 'none':
            context = negatives_unmined(model)
        else:
            yield
            return
        with context:
            yield


_WITHOUT_OBJECTS = Objective('fabricate')
