"""Defines objectives: which loss terms, on which ground truth, with which sign."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .class_weights import classes_of, weighted_classification_loss
from .ground_truth import (
    likely_classes,
    next_classes,
    relabelled,
    without_objects,
)
from .scores import log_background, margin, measured, negatives_unmined

# The head's classification and box terms, as the attacks A_cls, A_reg and A_cwa of
# arXiv 2305.17438 use them (its code: head losses only, no RPN, centerness or
# auxiliary-layer terms).
CLS, REG = 'loss_cls', 'loss_bbox'

# What becomes of each class, where an objective wants another one.
TARGETS = ('most-likely', 'least-likely', 'next')


@dataclass(frozen=True)
class Kind:
    """A named objective.

    Attributes:
        terms: names of loss terms, a pattern of names, or None for all.
        sign: 1 to raise the terms, -1 to lower them.
        truth: the ground truth: the image's ``'own'``, ``'none'``, or its boxes
            ``'relabelled'``.
        scores: what replaces the classification loss: ``'weighted'`` by class,
            ``'background'`` or ``'margin'``; None if nothing does.
        target: where labels change, the default of :data:`TARGETS`, or ``'given'``.
        maximises: one line of Markdown for the table of attacks, of which those with
            such a line are one by themselves (20 steps of PGD).
        source: where it comes from, for the same table: an arXiv number or Markdown.
        lacking: the part of a detector that the terms belong to, for the message to
            whose model has none.
    """

    terms: tuple[str, ...] | re.Pattern | None
    sign: int = 1
    truth: str = 'own'
    scores: str | None = None
    target: str | None = None
    maximises: str = ''
    source: str = ''
    lacking: str = ''


# Semantic segmentation's terms look at no object.
_OF_OBJECTS = re.compile(r'(?!loss_seg$|loss_semantic_seg$).*')
_RPN = re.compile(r'.*rpn.*')
_OBJECTNESS = re.compile(
    r'(.*[._])?(loss_obj|loss_conf|loss_centerness|loss_cls_objectness'
    r'|loss_rpn_cls|rpn_loss_cls)'
)

_TOG = '[2004.04320](https://arxiv.org/abs/2004.04320)'

NAMED = {
    'total': Kind(None),
    'cls': Kind((CLS,)),
    'reg': Kind((REG,)),
    'cls+reg': Kind((CLS, REG)),
    'cwa': Kind((CLS, REG), scores='weighted'),
    'vanish': Kind(
        _OF_OBJECTS,
        sign=-1,
        truth='none',
        maximises='minus all losses on empty ground truth: nothing is to be detected',
        source=f'TOG-vanishing, {_TOG}',
    ),
    'fabricate': Kind(
        _OF_OBJECTS,
        truth='none',
        maximises='all losses on empty ground truth: more is to be detected',
        source=f'TOG-fabrication, {_TOG}',
    ),
    'mislabel': Kind(
        (CLS,),
        sign=-1,
        truth='relabelled',
        target='most-likely',
        maximises='minus the classification loss on other labels in the same boxes',
        source=f'TOG-mislabeling, {_TOG}, of which only the classification term is '
        'used',
    ),
    'targeted': Kind(
        (CLS,),
        sign=-1,
        truth='relabelled',
        target='given',
        maximises='minus the classification loss with every label set to one class',
        source=f'TOG-mislabeling, {_TOG}, with a chosen class',
    ),
    'background': Kind(
        (CLS,),
        scores='background',
        maximises='the log-probability that predictions assigned to objects are '
        'background',
    ),
    'dag': Kind(
        (CLS,),
        scores='margin',
        target='most-likely',
        maximises='adversarial minus true logit, summed over the predictions assigned '
        'to objects that are still right',
        source='after DAG, [1703.08603](https://arxiv.org/abs/1703.08603)',
    ),
    'rpn': Kind(
        _RPN,
        maximises='the losses of the region proposal network alone',
        lacking='region proposal network',
    ),
    'objectness': Kind(
        _OBJECTNESS,
        maximises='what says "here is something" whatever its class: the RPN\'s '
        "classification, YOLO's objectness, the centerness",
        lacking='objectness or centerness',
    ),
}

# Denoising queries are built from the ground truth and from random noise: a loss on
# them leaks the labels and differs between two calls.
_DENOISING = 'dn_'


class Objective:
    """A scalar to maximise, made of a detector's losses.

    Larger means a stronger attack. What each name maximises, and where it comes from,
    is in docs/attacks.md.

    Args:
        terms: a name of :data:`NAMED`, like ``'total'`` (every loss), ``'cls'``,
            ``'cwa'`` (class-weighted classification plus box regression) or
            ``'vanish'``; or names of loss terms, to be raised. A name matches exactly;
            if none does, it matches behind a stage prefix, so that ``loss_cls`` finds
            the ``s0.loss_cls`` of a cascade and the ``stage0_loss_cls`` of Sparse
            R-CNN. Or a mapping with the ``name`` and the other arguments, for configs:
            ``dict(name='targeted', target_class='person')``.
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
                f'objective={terms!r} is unknown: choose one of {", ".join(NAMED)}, or '
                "a list of loss names such as ['loss_cls', 'loss_bbox']."
            )
        if not isinstance(terms, str) and not terms:
            raise ConfigError("objective=[] is empty: name loss terms, or use 'total'.")
        self.name = terms if isinstance(terms, str) else '+'.join(terms)
        self._kind = NAMED[terms] if isinstance(terms, str) else Kind(tuple(terms))
        self.terms = self._kind.terms
        self.needs_class_weights = self._kind.scores == 'weighted'
        self.class_weights = class_weights
        self.changes_losses = bool(
            self._kind.scores or self._kind.truth != 'own' or self._kind.sign < 0
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

    def __call__(self, losses: dict[str, Any]) -> Tensor:
        """Sums the selected losses as ``parse_losses`` would, with the sign.

        Args:
            losses: name to scalar, tensor or list of tensors, from
                ``model(..., mode='loss')``.

        Returns:
            A scalar.

        Raises:
            ConfigError: if a named term does not exist.
        """
        values: list[Tensor] = []
        for key in self.select(losses):
            loss = losses[key]
            parts = loss if isinstance(loss, (list, tuple)) else [loss]
            values.extend(part.mean() for part in parts)
        return self._kind.sign * torch.stack([v.float() for v in values]).sum()

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

    @property
    def wants_scores(self) -> bool:
        """True if :meth:`targets` needs class scores on the clean image."""
        return self.target in ('most-likely', 'least-likely')

    def targets(
        self, model: nn.Module, scores: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """Returns the class that each class is to become.

        Args:
            model: the bare detector.
            scores: gives the class scores (num_classes, num_classes) of the clean
                image, see :func:`ground_truth.likely_classes`; asked where
                :attr:`wants_scores`.

        Returns:
            Classes (num_classes,), or None where no label changes.

        Raises:
            ConfigError: if there is no such class, or only one.
        """
        if self.target is None:
            return None
        count = classes_of(model)
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
        elif kind.truth == 'none':
            context = negatives_unmined(model)
        else:
            yield
            return
        with context:
            yield
