"""Lets attacks ask mmpretrain's classifiers, and mixes images before an attack.

A detector's loss belongs to its batch; a classifier's is a mean over images that do not
touch each other in eval mode, so one pass over the batch gives every image its own
value and gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..batch import float_images
from ..errors import ConfigError
from ..region import REGION, region_of
from ..utils.seeding import seeded
from .base import Objective
from .latency import LatencyOracle
from .loss_mode import is_classifier
from .oracle import LossOracle, gradients
from .predictions import PredictionOracle

_ORACLES = {
    'losses': LossOracle,
    'ranking': PredictionOracle,
    'count': LatencyOracle,
}


def make_oracle(
    model: Any,
    data_batch: dict,
    samples: Sequence[Any],
    objective: Objective,
    per_image: bool = True,
) -> LossOracle:
    """Returns the oracle that fits the model, with :class:`LossOracle`'s arguments."""
    classifier = is_classifier(model)
    if classifier and objective.changes_losses:
        raise ConfigError(
            f"the objective {objective.name!r} is for detectors: use 'total' for a "
            'classifier.'
        )
    kind = ClassifierOracle if classifier else _ORACLES[objective.reads]
    return kind(model, data_batch, samples, objective, per_image)


class ClassifierOracle(LossOracle):
    """A classifier's loss, image by image in one pass over the batch.

    With ``per_image`` (evaluation) it is the cross entropy of the one label, whatever
    loss the model was trained with: a smoothed label asks for a probability of about
    0.9, so that the ascent of its loss makes an image that is more certain than that
    more certain still, and the accuracy under attack too high. Without (training) it
    is the head's ``loss_module`` before its reduction, against the soft label where
    there is one (after MixUp or CutMix), so that attack and update see the same target
    (as arXiv 2303.01870 trains). Several labels have the head's loss in both.

    Use inside :func:`mmrobust.objective.loss_mode`, whose eval mode makes images
    independent of each other.
    """

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """See :meth:`LossOracle.value`."""
        with torch.no_grad():
            return self._values(torch.stack(list(images)))

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See :meth:`LossOracle.value_and_grad`; values are always (N,)."""
        with torch.enable_grad():
            inputs = torch.stack(list(images)).detach().requires_grad_()
            values = self._values(inputs)
            (grads,) = gradients(values.sum(), [inputs])
        self.backwards += len(inputs)
        return values.detach(), list(grads)

    def misclassified(self, images: Sequence[Tensor]) -> list[bool]:
        """Returns which images the model gets wrong, if each has one label."""
        self.value(images)
        found = self.scores.argmax(1).tolist()
        labels = [sample.get('gt_label', None) for sample in self.samples]
        return [
            label is not None and label.numel() == 1 and int(label) != wrong
            for label, wrong in zip(labels, found, strict=True)
        ]

    def _values(self, images: Tensor) -> Tensor:
        batch = {**self.data_batch, 'data_samples': self.samples, 'inputs': images}
        data = self.model.data_preprocessor(batch, False)
        logits = self.model(**data, mode='tensor')
        self.forwards += len(images)
        loss_module = loss_module_of(self.model)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or loss_module is None:
            raise ConfigError(
                f'{type(self.model).__name__} does not give one score per class, which '
                'attacks on classifiers need: use a head with one linear output.'
            )
        self.objective.select({'loss': logits})  # refuses what a classifier lacks
        logits = logits.float()
        self.scores = logits.detach()
        samples = data['data_samples']
        labels = [sample.get('gt_label', None) for sample in samples]
        single = all(label is not None and label.numel() == 1 for label in labels)
        if single:
            label = torch.cat([label.flatten() for label in labels])
            if self.per_image:
                return nn.functional.cross_entropy(logits, label, reduction='none')
        if 'gt_score' in samples[0]:
            # The data preprocessor writes whole numbers where nothing was mixed.
            target = torch.stack([sample.gt_score for sample in samples]).float()
        elif single:
            target = label
        else:
            raise ConfigError(
                'an image has several labels, and attacks on classifiers need exactly '
                'one.'
            )
        losses = loss_module(logits, target, reduction_override='none')
        return losses.flatten(1).sum(1) if losses.dim() > 1 else losses


def check_labels(dataset: Any, num_classes: int) -> None:
    """Makes sure, by the annotations, that every label is one of the model's.

    Raises:
        ConfigError: for a label outside of [0, num_classes).
    """
    if not hasattr(dataset, 'get_data_info'):
        return
    for index in range(len(dataset)):
        given = dataset.get_data_info(index).get('gt_label')
        for label in np.atleast_1d([] if given is None else given):
            if not 0 <= label < num_classes:
                raise ConfigError(
                    f'an image has the label {int(label)}, but the model has '
                    f'{num_classes} classes: are dataset and checkpoint of one task?'
                )


def loss_module_of(model: Any) -> nn.Module | None:
    """Returns the module that turns a classifier's scores into its loss."""
    owner = model if getattr(model, 'head', None) is None else model.head
    return getattr(owner, 'loss_module', None)


def classifier_samples(
    data_samples: Sequence[BaseDataElement], device: torch.device | str
) -> list[BaseDataElement]:
    """Copies labels for an oracle, and refuses a sample without one."""
    for sample in data_samples:
        if 'gt_label' not in sample and 'gt_score' not in sample:
            raise ConfigError(
                'an image has no label, and an attack needs it: set with_label=True in '
                'the dataset.'
            )
    return [sample.to(device) for sample in data_samples]


@contextmanager
def mixed_first(model: Any, data_batch: dict, seed: int) -> Iterator[dict]:
    """Mixes images and labels (MixUp, CutMix) before the attack instead of after it.

    A classifier's data preprocessor mixes in training mode, after an attack would have
    been made for other images and labels. Mixing is linear in the pixels, so mixing
    before the normalisation gives the same. Inside the context the preprocessor does
    not mix again.

    Args:
        model: the bare model.
        data_batch: what the loader yields; it is not changed.
        seed: seed of the mixing, the same for all replays of a batch.

    Yields:
        The batch with mixed float images in pixel units (N, C, H, W) and soft labels
        in ``gt_score``; ``data_batch`` itself where the model does not mix.
    """
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    augments = getattr(preprocessor, 'batch_augments', None)
    if augments is None or not is_classifier(model):
        yield data_batch
        return
    device = next(model.parameters()).device
    samples = classifier_samples(data_batch['data_samples'], device)
    images = torch.stack(float_images(data_batch, device))
    labels, regions = _soft_labels(preprocessor, samples), _regions(images, samples)
    with seeded(seed, device):
        images, scores = augments(images, labels)
    for sample, score in zip(samples, scores, strict=True):
        sample.set_gt_score(score)
    if regions is not None:
        # What is mixed depends on a picture wherever one of its parts does.
        with seeded(seed, device):
            shares, _ = augments(regions, labels)
        for sample, share in zip(samples, shares, strict=True):
            sample.set_field(share > 0, REGION)
    preprocessor.batch_augments = None
    try:
        yield {**data_batch, 'inputs': images, 'data_samples': samples}
    finally:
        preprocessor.batch_augments = augments


def _regions(images: Tensor, samples: list[Any]) -> Tensor | None:
    """The attackable pixels, 1 in (N, 1, H, W); None where all of them are."""
    known = [region_of(sample) for sample in samples]
    if all(region is None for region in known):
        return None
    whole = torch.ones_like(images[:1, :1])
    return torch.cat([whole if r is None else r[None].to(whole) for r in known])


def _soft_labels(preprocessor: Any, samples: list[Any]) -> Tensor:
    if 'gt_score' in samples[0]:
        return torch.stack([sample.gt_score for sample in samples])
    count = preprocessor.num_classes or samples[0].get('num_classes')
    if count is None:
        raise ConfigError(
            'mixing labels needs their number: set num_classes in the '
            'data_preprocessor.'
        )
    labels = torch.cat([sample.gt_label for sample in samples])
    return nn.functional.one_hot(labels, count).float()
