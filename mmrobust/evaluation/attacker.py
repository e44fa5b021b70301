"""Attacks single images of a model, and predicts on what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..attacks import Attack, Patch
from ..batch import float_images, image_id, with_images
from ..checks import WatchedOracle
from ..distributed import alone
from ..errors import doing
from ..frame import (
    FRAME,
    TO_INPUT,
    attack_samples,
    count_boxes_outside,
    from_input,
)
from ..objective import (
    ClassifierOracle,
    DetectionOracle,
    Inputs,
    Seams,
    StackedOracle,
    classifier_samples,
    expected,
    is_classifier,
    loss_mode,
    make_oracle,
)
from ..region import REGION, restored
from ..utils.acceleration import Acceleration
from ..utils.models import bare_model, device_of
from ..utils.packing import pack, unpack
from ..utils.seeding import attack_generator, derive_seed, seeded
from .images import ids_of, names_of
from .original_pixels import ResizedOracle, as_picture, radius, through_file
from .picture_pipeline import PicturePipeline

# All that a record holds of an outcome beside predictions.
_FIGURES = (
    *('forwards', 'backwards', 'queries', 'seconds', 'outside'),
    *('watched', 'radius', 'patches', 'load'),
)


@dataclass
class Outcome:
    """What an attack made of one part of a batch, and at what cost."""

    outputs: list[BaseDataElement]  # the model's predictions on the attacked images
    forwards: int = 0  # images that went forwards through the network for the attack
    backwards: int = 0  # images that went backwards through it
    queries: int = 0  # of the forwards, those of attacks that use no gradient
    seconds: float = 0.0  # of the attack and of the predictions
    outside: int = 0  # ground-truth boxes that lie outside their image
    # of each image, see mmrobust.checks.WatchedOracle.summary
    watched: list[dict[str, Any]] = field(default_factory=list)
    # of the images as pictures of 8 bits, if asked for: predictions, and the largest
    # perturbation in pixel units
    quantized: list[BaseDataElement] | None = None
    radius: float | None = None
    # of an attack with patches, boxes (x1, y1, x2, y2) in the original picture of each
    # image, and its id
    patches: list[tuple[Any, list[list[float]]]] | None = None
    load: dict[str, Any] | None = None  # of predicting on the image, see load.py
    # the attacked images (C, H, W) in pixel units, as the network saw them and in the
    # space of the attack; None of an outcome that comes from a record
    inputs: list[Tensor] | None = field(default=None, repr=False)
    found: list[Tensor] | None = field(default=None, repr=False)

    def cost(self) -> dict[str, Any]:
        """Returns all but predictions and images."""
        return {name: getattr(self, name) for name in _FIGURES}

    def pack(self, part: dict) -> dict[str, Any]:
        """Makes the record of the outcome, see :func:`mmrobust.utils.packing.pack`."""
        record = self.cost()
        for name in ('outputs', 'quantized'):
            predicted = getattr(self, name)
            if predicted is not None:
                pairs = zip(predicted, part['data_samples'], strict=True)
                record[name] = [pack(*pair) for pair in pairs]
        return record

    @classmethod
    def unpack(cls, record: dict[str, Any], part: dict) -> Outcome:
        """Returns the outcome that a record holds."""
        content = {name: record[name] for name in _FIGURES if name in record}
        for name in ('outputs', 'quantized'):
            if name in record:
                pairs = zip(record[name], part['data_samples'], strict=True)
                content[name] = [unpack(*pair) for pair in pairs]
        return cls(**content)


@dataclass(eq=False)
class Attacker:
    """Attacks parts of batches that stand for themselves, and predicts on them."""

    wrapped: Any  # the model, possibly in a distributed wrapper
    seed: int  # of all draws, together with the image's id
    gt_frame: str  # see mmrobust.frame.attack_samples
    fp16: bool  # predict under autocast
    pixels: PicturePipeline | None  # for original pixels and pictures of 8 bits
    space: str  # what is attacked: 'input', or the 'original' picture
    quantize: bool  # predict also on the attacked image as a picture of 8 bits
    speed: Acceleration  # of attacks, and neither predictions nor trials
    group_size: int  # images of a detector that may share an attack's passes
    measures_load: bool = False  # see load.py
    # Parts of the model that take several images; without them one image is attacked
    # after the other.
    seams: Seams | None = None

    def __post_init__(self) -> None:
        self.model = bare_model(self.wrapped)
        self.classifier = is_classifier(self.model)

    @property
    def device(self) -> torch.device:
        """Returns where the model is."""
        return device_of(self.model)

    def groups(self, parts: Sequence[dict]) -> list[list[int]]:
        """Returns the places of parts that are attacked together, of one shape."""
        if self.seams is None:
            return [[place] for place in range(len(parts))]
        shapes: dict[Any, list[int]] = {}
        inputs = Inputs(self.model, {})
        for place, part in enumerate(parts):
            shape = inputs.padded([image.shape for image in part['inputs']])
            shapes.setdefault(shape, []).append(place)
        size = self.group_size
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
        reads_output = attack.reads == 'detections'
        reads_output |= attack.objective.reads != 'losses'
        if len(parts) == 1 or reads_output:
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
        with self.asking():
            samples = self.samples(batch)
            seeds = [derive_seed(self.seed, each) for each in ids_of(batch)]
            oracle = self.oracle(
                attack, batch, samples, seeds if len(parts) > 1 else None
            )
            watched = WatchedOracle(expected(oracle, attack.eot))
            with seeded(seeds[0], self.device):
                draws = [attack_generator(seed) for seed in seeds]
                with self.speed.on(self.model):
                    clean, found, inputs = self._perturb(attack, watched, batch, draws)
            patches = self._patches(attack, oracle, batch, clean)
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
            outcome.queries = outcome.forwards if attack.asks == 'values' else 0
            if not self.classifier:
                outcome.outside = count_boxes_outside(samples[own])
            outcome.watched = seen[own]
            outcome.inputs, outcome.found = inputs[own], found[own]
            outcome.patches = patches[own] if patches is not None else None
            if self.quantize:
                self._predict_quantized(outcome, part, clean[place], attack.threat.norm)
            outcome.seconds = seconds + time.monotonic() - started
            outcomes.append(outcome)
        return outcomes

    def _perturb(
        self, attack: Attack, oracle: Any, part: dict, draws: list[torch.Generator]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Returns clean and attacked images, and these as the network gets them."""
        clean = self.clean(part)
        if self.space == 'input':
            found = attack.perturb(oracle, clean, draws)
            found = restored(found, clean, part['data_samples'])
            return clean, found, found
        resized = self._resized(oracle, part)
        found = attack.perturb(resized, clean, draws)
        return clean, found, resized.inputs(found)

    def shown(self, oracle: Any, part: dict, images: list[Tensor]) -> list[Tensor]:
        """Returns what the network gets of a part's images in the attacked space."""
        if self.space == 'input':
            return images
        return self._resized(oracle, part).inputs(images)

    def _resized(self, oracle: Any, part: dict) -> ResizedOracle:
        assert self.pixels is not None
        resizers = [self.pixels.resizer(sample) for sample in part['data_samples']]
        return ResizedOracle(oracle, resizers)

    def _patches(
        self, attack: Attack, oracle: Any, part: dict, clean: list[Tensor]
    ) -> list[tuple[Any, list[list[float]]]] | None:
        """Returns where patches lie in the original pictures."""
        resized = self.space == 'original'
        view = self._resized(oracle, part) if resized else oracle
        places = attack.patches(view, clean)
        if places is None:
            return None
        found = []
        for sample, each in zip(part['data_samples'], places, strict=True):
            boxes = np.array([place.box for place in each], float).reshape(-1, 4)
            if not resized:
                boxes = from_input(sample).boxes(boxes)
            found.append((image_id(sample), boxes.tolist()))
        return found

    def check_patches(self, attack: Patch, part: dict) -> None:
        """See :meth:`.Patch.check_fits`."""
        oracle = self.oracle(attack, part, self.samples(part))
        view = self._resized(oracle, part) if self.space == 'original' else oracle
        attack.check_fits(view, self.clean(part))

    def clean(self, part: dict) -> list[Tensor]:
        """Returns what is attacked: the network's inputs or the original pictures."""
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
        """Returns the stock prediction, seeded in case that the model draws."""
        seed = derive_seed(self.seed, ids_of(part)[0], 'prediction')
        # A model may write into the samples, which tell what it has added.
        samples = [sample.clone() for sample in part['data_samples']]
        for sample in samples:
            for key in (REGION, FRAME, TO_INPUT):
                sample.pop(key, None)
        part = {**part, 'data_samples': samples}
        where = f'predicting on {names_of(ids_of(part))}'
        with doing(where), seeded(seed, self.device):
            return self.predict_unseeded(part)

    @torch.no_grad()
    def predict_unseeded(self, part: dict) -> list[BaseDataElement]:
        """Returns the stock prediction as it comes."""
        with alone(), autocast(enabled=self.fp16):
            outputs: list[BaseDataElement] = self.wrapped.test_step(part)
        return outputs

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Lets the model be asked for its losses."""
        with alone(), loss_mode(self.model):
            yield

    def oracle(
        self,
        attack: Attack,
        part: dict,
        samples: Sequence[BaseDataElement],
        seeds: Sequence[int] | None = None,
    ) -> Any:
        """Builds what answers the attack, from losses or the detector's final output.

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

    def samples(self, part: dict) -> list[BaseDataElement]:
        """Returns the ground truth as losses need it."""
        if self.classifier:
            return classifier_samples(part['data_samples'], self.device)
        return attack_samples(part['data_samples'], self.device, self.gt_frame)
