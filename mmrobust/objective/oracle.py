"""Answers an attack: values and gradients of an objective on a batch of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..batch import float_images, take
from ..frame import object_boxes
from ..region import region_of
from ..utils.seeding import seeded
from .base import Objective
from .class_weights import classes_of
from .inputs import Inputs
from .loss_mode import LossState
from .scores import class_scores, measured


class LossOracle:
    """Answers an attack's questions about one batch, and counts them.

    Use inside :func:`loss_mode`.

    Args:
        model: the bare detector.
        data_batch: the batch whose images are attacked.
        samples: ground truth in the input frame, from :func:`frame.attack_samples`.
        objective: what to maximise.
        per_image: each image goes through the network alone, so that its loss (and
            its adversarial example) does not depend on its neighbours in the batch.
            Otherwise the batch goes through at once and all images share one value,
            as in adversarial training.

    Attributes:
        forwards: images that went through the network forwards.
        backwards: images that went through the network backwards.
        regions: which pixels of each image are attackable, see :mod:`mmrobust.region`.
    """

    def __init__(
        self,
        model: Any,
        data_batch: dict,
        samples: Sequence[Any],
        objective: Objective,
        per_image: bool = True,
    ) -> None:
        self.model = model
        self.data_batch = data_batch
        self.samples = list(samples)
        # Of the clean images; an attack may move the others along with the pixels.
        self._clean = list(samples)
        self.regions = [region_of(sample) for sample in samples]
        self.objective = objective
        self.per_image = per_image
        self.forwards = 0
        self.backwards = 0
        self._memory = LossState(model)
        # Of every part: what its objects are to become, the ground truth that goes
        # with it beside the samples it was made of, and what the model gets.
        self._targets: dict[tuple[int, ...], Tensor | None] = {}
        self._truth: dict[tuple[int, ...], tuple[list[Any], list[Any]]] = {}
        self._inputs: dict[tuple[int, ...], Inputs] = {}

    @property
    def boxes(self) -> list[Tensor | None]:
        """Of the objects of each clean image, see :func:`.object_boxes`."""
        return [object_boxes(sample) for sample in self._clean]

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """Returns the objective (N,) of images (C, H, W), without gradients."""
        with torch.no_grad():
            return torch.stack(
                [self._loss(part, images) for part in self._parts(images)]
            )

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The objective and its gradient with respect to every image.

        Args:
            images: one tensor (C, H, W) in pixel units per image of the batch.

        Returns:
            Values (N,), or (1,) without ``per_image``, and one gradient (C, H, W) per
            image, zero where it is not finite or the objective does not depend on it.
        """
        values: list[Tensor] = []
        grads: list[Tensor] = []
        with torch.enable_grad():
            leaves = [image.detach().requires_grad_() for image in images]
            for part in self._parts(images):
                loss = self._loss(part, leaves)
                values.append(loss.detach())
                inputs = [leaves[i] for i in part]
                grads.extend(gradients(loss, inputs))
                self.backwards += len(part)
        return torch.stack(values), grads

    @contextmanager
    def moved(self, places: Sequence[Any]) -> Iterator[None]:
        """Asks, while the context lasts, on ground truth that lies elsewhere.

        Args:
            places: one for each image, with a method ``move`` from a sample to the
                moved one, or None for an image that stays. Samples of images that have
                labels only stay, too.
        """
        samples = self.samples
        self.samples = [
            sample
            if place is None or 'gt_instances' not in sample
            else place.move(sample)
            for sample, place in zip(samples, places, strict=True)
        ]
        try:
            yield
        finally:
            self.samples = samples

    def _parts(self, images: Sequence[Tensor]) -> list[list[int]]:
        indices = list(range(len(images)))
        return [[i] for i in indices] if self.per_image else [indices]

    def _loss(self, part: list[int], images: Sequence[Tensor]) -> Tensor:
        # Before the images are preprocessed: their gradient needs those buffers, which
        # somebody else may have written to since.
        self._memory.restore()
        data = self._data(part, [images[i] for i in part])
        objective = self._objective(part)
        with objective.attached(self.model, self._targets[tuple(part)]):
            losses = self._losses(data, len(part))
        return objective(losses)

    def _objective(self, part: list[int]) -> Objective:
        return self.objective.on([self._clean[i] for i in part])

    def _data(self, part: list[int], images: Sequence[Tensor]) -> dict[str, Any]:
        """Returns what the model gets of the images of a part."""
        key = tuple(part)
        if key not in self._targets:
            scores = partial(self._clean_scores, part, images[0].device)
            clean = [self._clean[i] for i in part]
            found = self._objective(part).targets(self.model, scores, clean)
            self._targets[key] = found
        own = [self.samples[i] for i in part]
        known, truth = self._truth.get(key, ([], []))
        if not known or any(a is not b for a, b in zip(own, known, strict=True)):
            targets = self._targets[key]
            truth = [self._truth_of(sample, targets) for sample in own]
            self._truth[key] = own, truth
        if key not in self._inputs:
            self._inputs[key] = Inputs(self.model, take(self.data_batch, part))
        return self._inputs[key](images, truth)

    def _truth_of(self, sample: Any, targets: Tensor | None) -> Any:
        return self.objective.on([sample]).truth(sample, targets)

    def _clean_scores(self, part: list[int], device: torch.device) -> Tensor:
        """Reads what the detector takes the objects of the clean images for.

        Returns:
            Summed class probabilities (num_classes, num_classes), a row per true class.
        """
        clean = float_images(self.data_batch, device)
        # Its own draws, so that the first value costs the caller's generator nothing.
        reading = measured(self.model, class_scores, "set target='next'")
        with torch.no_grad(), seeded(0, device), reading:
            inputs = Inputs(self.model, take(self.data_batch, part))
            own = [self._clean[i] for i in part]
            losses = self._losses(inputs([clean[i] for i in part], own), len(part))
        parts = self.objective.parts(losses)
        count = classes_of(self.model, own)
        # A head without a positive prediction gives a plain zero.
        tables = [p.reshape(-1, count, count).sum(0) for p in parts if p.dim() > 1]
        return sum(tables, torch.zeros(count, count, device=device))

    def _losses(self, data: dict[str, Any], count: int) -> dict[str, Any]:
        # A loss must not depend on how often it was asked for.
        self._memory.restore()
        # As train_step does: a project may have its own way from data to forward().
        losses: dict[str, Any] = self.model._run_forward(data, mode='loss')
        self.forwards += count
        return losses


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Returns gradients of a scalar, zeros where there is none or no finite one."""
    if not loss.requires_grad:
        return [torch.zeros_like(image) for image in inputs]
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [
        torch.zeros_like(image)
        if grad is None
        else torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        for image, grad in zip(inputs, grads, strict=True)
    ]
