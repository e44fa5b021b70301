"""Attacking single images of a model and predicting on what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..attacks import Attack, RandomNoise
from ..batch import (
    attack_samples,
    check_batch,
    count_boxes_outside,
    float_images,
    image_id,
    split_batch,
    with_images,
)
from ..blame import models_own
from ..checks import WatchedOracle, examine
from ..distributed import alone
from ..errors import ConfigError
from ..objective import (
    NotStackedError,
    Objective,
    Seams,
    StackedOracle,
    find_seams,
    loss_mode,
)
from ..objective.classifier import (
    ClassifierOracle,
    check_labels,
    classifier_samples,
    is_classifier,
    make_oracle,
)
from ..objective.detections import DetectionOracle
from ..objective.inputs import Inputs
from ..utils.acceleration import Acceleration
from ..utils.models import bare_model
from ..utils.seeding import attack_generator, derive_seed, seeded
from .original_pixels import (
    PicturePipeline,
    ResizedOracle,
    as_picture,
    radius,
    through_file,
)
from .outcome import Outcome


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
        fp16: predict under autocast.
        pixels: the way from pictures to the network's input, which both of the
            following need.
        space: ``'input'`` to attack what the network gets, ``'original'`` to attack
            the picture that the pipeline resizes.
        quantize: predict also on the attacked image as a picture of 8 bits.
        speed: accelerates attacks, and neither predictions nor trials; it has the
            model prepared.
        attack_batch_size: how many images of a detector may share the network's passes
            in an attack, if :meth:`check_groups` finds that they can.

    Attributes:
        seams: the parts of the model that take several images; None if images are
            attacked one by one.
    """

    def __init__(
        self,
        model: Any,
        seed: int,
        gt_frame: str,
        fp16: bool = False,
        pixels: PicturePipeline | None = None,
        space: str = 'input',
        quantize: bool = False,
        speed: Acceleration | None = None,
        attack_batch_size: int = 1,
    ) -> None:
        self.wrapped = model
        self.model = bare_model(model)
        self.seed = seed
        self.gt_frame = gt_frame
        self.fp16 = fp16
        self.pixels = pixels
        self.space = space
        self.quantize = quantize
        self.speed = speed or Acceleration()
        self.attack_batch_size = attack_batch_size
        self.seams: Seams | None = None
        self.classifier = is_classifier(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def parts(self, data_batch: dict) -> list[dict]:
        """The parts of a batch that stand for themselves."""
        return [data_batch] if self.classifier else split_batch(data_batch)

    def groups(self, parts: Sequence[dict]) -> list[list[int]]:
        """Which parts are attacked together: those that make inputs of one shape."""
        if self.seams is None:
            return [[place] for place in range(len(parts))]
        shapes: dict[Any, list[int]] = {}
        inputs = Inputs(self.model, {})
        for place, part in enumerate(parts):
            shape = inputs.padded([image.shape for image in part['inputs']])
            shapes.setdefault(shape, []).append(place)
        size = self.attack_batch_size
        return [
            places[start : start + size]
            for places in shapes.values()
            for start in range(0, len(places), size)
        ]

    def attack(self, attack: Attack, part: dict) -> Outcome:
        """Attacks the images of a part, and predicts on the result."""
        (outcome,) = self._attack(attack, part, [part])
        return outcome

    def attack_together(self, attack: Attack, parts: Sequence[dict]) -> list[Outcome]:
        """Attacks the parts of a group, in passes that all of them share.

        What is found is what :meth:`attack` finds up to rounding. Attacks that read the
        detector's output, whose searches rounding can turn, are made one by one.
        """
        if len(parts) == 1 or attack.reads == 'detections':
            return [self.attack(attack, part) for part in parts]
        batch = {
            key: [part[key][0] for part in parts] for key in ('inputs', 'data_samples')
        }
        return self._attack(attack, batch, parts)

    def _attack(
        self, attack: Attack, batch: dict, parts: Sequence[dict]
    ) -> list[Outcome]:
        """Attacks a batch, and predicts on what became of each of its parts."""
        started = time.monotonic()
        with self._asking():
            samples, _ = self.samples(batch)
            seeds = [derive_seed(self.seed, each) for each in ids_of(batch)]
            oracle = self.oracle(
                attack, batch, samples, seeds if len(parts) > 1 else None
            )
            watched = WatchedOracle(oracle)
            with seeded(seeds[0], self.device):
                draws = [attack_generator(seed) for seed in seeds]
                with self.speed.on(self.model):
                    clean, found, inputs = self._perturb(attack, watched, batch, draws)
            if isinstance(oracle, ClassifierOracle):
                # An attack that mends an image has not made the model robust.
                wrong = oracle.misclassified(clean)
                pairs = zip(wrong, clean, found, strict=True)
                found = [mine if lost else image for lost, mine, image in pairs]
                inputs = found
        # Every image of a group has had as many passes.
        count, seen = len(parts), watched.summary()
        seconds = (time.monotonic() - started) / count
        outcomes = []
        for place, part in enumerate(parts):
            started = time.monotonic()
            own = slice(place, place + 1) if count > 1 else slice(None)
            outcome = Outcome(self.predict(with_images(part, inputs[own])))
            outcome.forwards = oracle.forwards // count
            outcome.backwards = oracle.backwards // count
            outcome.queries = outcome.forwards if attack.gradient_free else 0
            if not self.classifier:
                outcome.outside = count_boxes_outside(samples[own])
            outcome.watched = seen[own]
            outcome.inputs, outcome.found = inputs[own], found[own]
            if self.quantize:
                self._predict_quantized(outcome, part, clean[place], attack.threat.norm)
            outcome.seconds = seconds + time.monotonic() - started
            outcomes.append(outcome)
        return outcomes

    def _perturb(
        self, attack: Attack, oracle: Any, part: dict, draws: list[torch.Generator]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Clean and attacked images, and the latter as the network gets them."""
        clean = self.clean(part)
        if self.space == 'input':
            found = attack.perturb(oracle, clean, draws)
            return clean, found, found
        assert self.pixels is not None
        resizers = [self.pixels.resizer(sample) for sample in part['data_samples']]
        found = attack.perturb(ResizedOracle(oracle, resizers), clean, draws)
        pairs = zip(resizers, found, strict=True)
        return clean, found, [resizer(image) for resizer, image in pairs]

    def clean(self, part: dict) -> list[Tensor]:
        """What is attacked: the network's inputs or the original pictures."""
        if self.space == 'input':
            return float_images(part, self.device)
        assert self.pixels is not None
        return [self.pixels.picture(key).to(self.device) for key in ids_of(part)]

    def _predict_quantized(
        self, outcome: Outcome, part: dict, clean: Tensor, norm: str
    ) -> None:
        """Predicts on a file of the attacked image, as the pipeline loads it."""
        assert self.pixels is not None
        assert outcome.found is not None
        (sample,), (image,) = part['data_samples'], outcome.found
        if self.space == 'input':
            # The pipeline pads by itself.
            image = self.pixels.without_padding(sample, image)
            clean = self.pixels.without_padding(sample, clean)
        picture = through_file(as_picture(image))
        outcome.radius = radius(picture, clean.permute(1, 2, 0).cpu().numpy(), norm)
        batch = self.pixels.rerun(image_id(sample), picture, sample)
        outcome.quantized = self.predict(batch)

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

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with alone(), loss_mode(self.model):
            yield

    def oracle(
        self,
        attack: Attack,
        part: dict,
        samples: Sequence[BaseDataElement],
        seeds: Sequence[int] | None = None,
    ) -> Any:
        """What answers the attack: the losses, or the detector's final output.

        Args:
            attack: the attack.
            part: the batch.
            samples: its ground truth.
            seeds: of each image's draws, if the images are a group.
        """
        if seeds is not None:
            assert self.seams is not None
            return StackedOracle(
                self.model, part, samples, attack.objective, self.seams, seeds
            )
        if attack.reads == 'detections' and not self.classifier:
            return DetectionOracle(self.model, part, samples)
        return make_oracle(self.model, part, samples, attack.objective)

    def samples(self, part: dict) -> tuple[list[BaseDataElement], int]:
        """The ground truth as losses need it, and how many boxes lie outside."""
        if self.classifier:
            return classifier_samples(part['data_samples'], self.device), 0
        samples = attack_samples(part['data_samples'], self.device, self.gt_frame)
        return samples, count_boxes_outside(samples)

    def examine(
        self,
        part: dict,
        score: Callable[[BaseDataElement], float],
        norm: str,
        eps: float,
    ) -> dict[str, Any]:
        """Makes the trials of :func:`mmrobust.checks.examine` on an image.

        Args:
            part: a batch of one image.
            score: of a prediction, from 0 to 1.
            norm: of the radius.
            eps: in pixel units of 0-255.
        """
        samples, _ = self.samples(part)

        def oracle() -> Any:
            return _Asked(
                make_oracle(self.model, part, samples, Objective()), self._asking
            )

        @torch.no_grad()
        def score_of(images: list[Tensor]) -> float:
            # Not seeded here: whether that makes a difference is the question.
            with alone(), autocast(enabled=self.fp16):
                (output,) = self.wrapped.test_step(with_images(part, images))
            return score(output)

        generator = attack_generator(derive_seed(self.seed, ids_of(part)[0], 'trial'))
        images = float_images(part, self.device)
        return examine(images, oracle, score_of, generator, norm, eps)

    def check(self, attacks: Sequence[Attack], dataset: Any, collate: Any) -> list[str]:
        """Asks for every named objective once, before a pass that may take hours.

        Of a classifier also for the others, whose output and labels may not fit; of a
        detector for one of them, so that a model without losses is found.

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
        named = named or [a for a in attacks if not isinstance(a, RandomNoise)][:1]
        if not named:
            return []
        part = collate([dataset[0]])
        check_batch(part)
        if not isinstance(self.model.data_preprocessor, torch.nn.Module):
            raise ConfigError(
                'model.data_preprocessor of the config is no module that prepares '
                'images: give DetDataPreprocessor, or one of its kind.'
            )
        with self._asking(), seeded(self.seed, self.device):
            samples, _ = self.samples(part)
            for attack in named:
                oracle = self.oracle(attack, part, samples)
                with models_own():
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

    def check_groups(self, dataset: Any, collate: Any) -> list[str]:
        """Tries out whether images can be attacked together, if that is asked for.

        Returns:
            A sentence for the report's checks if they cannot.
        """
        self.seams = None
        if self.attack_batch_size == 1:
            return []
        part = collate([dataset[0]])
        try:
            with self._asking():
                samples, _ = self.samples(part)
                self.seams = find_seams(self.model, part, samples)
        except NotStackedError as error:
            self.attack_batch_size = 1
            return [
                f'images are attacked one by one, since {type(self.model).__name__} '
                f'does not allow more of attack_batch_size: {error}'
            ]
        return []


class _Asked:
    """An oracle that enters a context for every question."""

    def __init__(self, oracle: Any, asking: Callable[[], Any]) -> None:
        self._oracle, self._asking = oracle, asking

    def __getattr__(self, name: str) -> Any:
        return getattr(self._oracle, name)

    def value(self, images: Sequence[Tensor]) -> Tensor:
        with self._asking():
            values: Tensor = self._oracle.value(images)
        return values

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with self._asking():
            answer: tuple[Tensor, list[Tensor]] = self._oracle.value_and_grad(images)
        return answer


def ids_of(part: dict) -> list[Any]:
    """The ids of a part's images."""
    return [image_id(sample) for sample in part['data_samples']]
