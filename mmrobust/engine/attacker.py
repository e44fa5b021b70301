"""Attacking single images of a model and predicting on what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..attacks import Attack
from ..batch import (
    attack_samples,
    count_boxes_outside,
    float_images,
    image_id,
    split_batch,
    with_images,
)
from ..classification import (
    ClassifierOracle,
    check_labels,
    classifier_samples,
    is_classifier,
    make_oracle,
)
from ..detection_score import DetectionOracle
from ..objective import loss_mode
from ..seeding import attack_generator, derive_seed, seeded
from .adversaries.base import bare_model
from .alone import alone
from .records import pack, unpack


@dataclass
class Outcome:
    """What an attack made of the images of one part of a batch, and at what cost.

    Attributes:
        outputs: the model's predictions on the attacked images.
        forwards: images that went forwards through the network for the attack.
        backwards: images that went backwards through it.
        queries: of the forwards, those of attacks that use no gradient.
        seconds: time of the attack and of the prediction.
        outside: ground-truth boxes that lie outside their image.
        images: the attacked images as the network saw them, (C, H, W) in pixel units;
            None if the outcome comes from a record.
    """

    outputs: list[BaseDataElement]
    forwards: int = 0
    backwards: int = 0
    queries: int = 0
    seconds: float = 0.0
    outside: int = 0
    images: list[Tensor] | None = field(default=None, repr=False)

    _COUNTED = ('forwards', 'backwards', 'queries', 'seconds', 'outside')

    def cost(self) -> dict[str, Any]:
        """All but predictions and images."""
        return {name: getattr(self, name) for name in self._COUNTED}

    def pack(self, part: dict) -> dict[str, Any]:
        """The record of the outcome, see :func:`mmrobust.engine.records.pack`."""
        pairs = zip(self.outputs, part['data_samples'], strict=True)
        return {'outputs': [pack(*pair) for pair in pairs], **self.cost()}

    @classmethod
    def unpack(cls, record: dict[str, Any], part: dict) -> Outcome:
        """The outcome that a record holds."""
        pairs = zip(record['outputs'], part['data_samples'], strict=True)
        costs = {name: record[name] for name in cls._COUNTED}
        return cls(outputs=[unpack(*pair) for pair in pairs], **costs)


class Attacker:
    """Attacks the parts of batches that stand for themselves.

    Of a detector that is every single image: losses are normalised over a batch and
    images padded to the largest, so that only an image alone has an adversarial
    example, and a prediction, of its own. A classifier keeps images apart by itself.

    Args:
        model: the model, possibly in a distributed wrapper.
        seed: of all draws, together with the image's id.
        gt_frame: ``'original'`` or ``'input'``, see
            :func:`mmrobust.batch.attack_samples`.
        fp16: predict under autocast; attacks always compute in full precision.
    """

    def __init__(self, model: Any, seed: int, gt_frame: str, fp16: bool) -> None:
        self.wrapped = model
        self.model = bare_model(model)
        self.seed = seed
        self.gt_frame = gt_frame
        self.fp16 = fp16
        self.classifier = is_classifier(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def parts(self, data_batch: dict) -> list[dict]:
        """The parts of a batch that stand for themselves."""
        return [data_batch] if self.classifier else split_batch(data_batch)

    def attack(self, attack: Attack, part: dict) -> Outcome:
        """Attacks the images of a part, and predicts on the result."""
        started = time.monotonic()
        outcome = Outcome([])
        with alone(), loss_mode(self.model):
            samples, outcome.outside = self.samples(part)
            oracle = self.oracle(attack, part, samples)
            seeds = [derive_seed(self.seed, each) for each in ids_of(part)]
            with seeded(seeds[0], self.device):
                images = float_images(part, self.device)
                draws = [attack_generator(seed) for seed in seeds]
                found = attack.perturb(oracle, images, draws)
            if isinstance(oracle, ClassifierOracle):
                # An attack that mends an image has not made the model robust.
                wrong = oracle.misclassified(images)
                pairs = zip(wrong, images, found, strict=True)
                found = [clean if lost else image for lost, clean, image in pairs]
        outcome.forwards, outcome.backwards = oracle.forwards, oracle.backwards
        outcome.queries = oracle.forwards if attack.gradient_free else 0
        outcome.images = found
        outcome.outputs = self.predict(with_images(part, found))
        outcome.seconds = time.monotonic() - started
        return outcome

    @torch.no_grad()
    def predict(self, part: dict) -> list[BaseDataElement]:
        """The stock prediction, seeded in case that the model draws itself."""
        seed = derive_seed(self.seed, ids_of(part)[0], 'prediction')
        # A model may write into the samples, which tell what it has added.
        samples = [sample.clone() for sample in part['data_samples']]
        part = {**part, 'data_samples': samples}
        with alone(), seeded(seed, self.device), autocast(enabled=self.fp16):
            outputs: list[BaseDataElement] = self.wrapped.test_step(part)
        return outputs

    def oracle(
        self, attack: Attack, part: dict, samples: Sequence[BaseDataElement]
    ) -> Any:
        """What answers the attack: the losses, or the detector's final output."""
        if attack.reads == 'detections' and not self.classifier:
            return DetectionOracle(self.model, part, samples)
        return make_oracle(self.model, part, samples, attack.objective)

    def samples(self, part: dict) -> tuple[list[BaseDataElement], int]:
        """The ground truth as losses need it, and how many boxes lie outside."""
        if self.classifier:
            return classifier_samples(part['data_samples'], self.device), 0
        samples = attack_samples(part['data_samples'], self.device, self.gt_frame)
        return samples, count_boxes_outside(samples)

    def check(self, attacks: Sequence[Attack], dataset: Any, collate: Any) -> list[str]:
        """Asks for every named objective once, before a pass that may take hours.

        Of a classifier also for the others, whose output and labels may not fit.

        Returns:
            Sentences for the report's checks.

        Raises:
            ConfigError: if the model does not have the losses that an attack names.
        """
        meta = getattr(dataset, 'metainfo', {})
        for attack in attacks:
            names = meta.get('thing_classes', meta.get('classes'))
            attack.objective.class_names = names
        named = [
            a
            for a in attacks
            if self.classifier
            or a.reads == 'detections'
            or a.objective.terms is not None
        ]
        if not named:
            return []
        part = collate([dataset[0]])
        with alone(), loss_mode(self.model), seeded(self.seed, self.device):
            samples, _ = self.samples(part)
            for attack in named:
                oracle = self.oracle(attack, part, samples)
                oracle.value(float_images(part, self.device))
                if isinstance(oracle, ClassifierOracle):
                    scores = oracle.scores
                    check_labels(dataset, scores.shape[1])
                    if (scores >= 0).all() and (scores.sum(1) - 1).abs().max() < 1e-4:
                        return [
                            'the outputs look like probabilities and not like logits, '
                            'which hides gradients: take the softmax out of the head'
                        ]
        return []


def ids_of(part: dict) -> list[Any]:
    """The ids of a part's images."""
    return [image_id(sample) for sample in part['data_samples']]
