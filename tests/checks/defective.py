"""Small detectors that detect, and the same with one defect each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet)
import stored
import tiny
import torch
from mmdet.registry import DATASETS
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from mmrobust.analysis import (
    Detections,
    GroundTruth,
    image_score,
    match_detections,
    mean_ap,
)
from mmrobust.batch import float_images, with_images
from mmrobust.frame import attack_samples
from mmrobust.objective import LossOracle, Objective, loss_mode


class Examined:
    """A detector, and the images on which it is examined.

    It has learned them by heart, without the noise that they have here: at the very
    minimum of the loss no gradient tells how the loss changes.
    """

    def __init__(self, root: Path, family: str) -> None:
        tiny.make_coco(root, **stored.SQUARE)
        self.data = DATASETS.build(tiny.dataset(root, True, scale=(96, 96)))
        self.model = stored.detector(family)
        # Three images with objects, and one without.
        self.batches = [pseudo_collate([self.data[i]]) for i in range(4)]
        draws = torch.Generator().manual_seed(0)
        for batch in self.batches:
            (image,) = batch['inputs']
            noise = torch.randint(-8, 9, image.shape, generator=draws)
            batch['inputs'] = [(image + noise).clamp(0, 255).to(torch.uint8)]
        self.truths = [
            GroundTruth.from_data_info(self.data.get_data_info(i)) for i in range(4)
        ]

    def images(self, index: int) -> list[Tensor]:
        return float_images(self.batches[index], 'cpu')

    def oracle(self, index: int, objective: Any = 'total') -> LossOracle:
        batch = self.batches[index]
        samples = attack_samples(batch['data_samples'], 'cpu', 'original')
        return ModalOracle(self.model, batch, samples, Objective(objective))

    def detect(self, index: int, images: list[Tensor]) -> Detections:
        with torch.no_grad():
            (output,) = self.model.test_step(with_images(self.batches[index], images))
        return Detections.from_sample(output)

    def score(self, index: int) -> Callable[[list[Tensor]], float]:
        return lambda images: image_score(
            self.truths[index], self.detect(index, images), len(tiny.CLASSES)
        )

    def mean_ap_of(self, detections: list[Detections]) -> float:
        truths = self.truths[: len(detections)]
        return mean_ap(match_detections(truths, detections, len(tiny.CLASSES)))


class ModalOracle(LossOracle):
    """Enters the loss mode by itself, so that predictions can be made in between."""

    def value(self, images):
        with loss_mode(self.model):
            return super().value(images)

    def value_and_grad(self, images):
        with loss_mode(self.model):
            return super().value_and_grad(images)


class _Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image):
        return image.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


Defect = Callable[[nn.Module, Tensor, Tensor], Tensor]


def rounded(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    """To 8 bits, which has no gradient."""
    return (image * 57).round() / 57


def saturated(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    return torch.tanh(1e4 * image)


def flipped(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    return _Flip.apply(image)


def noisy(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    return image + 0.2 * torch.randn_like(image)


_OWN = torch.Generator().manual_seed(1)


def noisy_by_itself(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    """Noise that no global seed repeats."""
    return image + 0.2 * torch.randn(image.shape, generator=_OWN)


def blind(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    return clean


def decoupled(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    """The loss sees the image, the detections do not."""
    return image if model.training else clean


def cleaned(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    """Undoes changes of more than 5 pixel units, and passes no gradient there."""
    return torch.where((image - clean).abs() * 57 > 5, clean, image)


def broken(model: nn.Module, image: Tensor, clean: Tensor) -> Tensor:
    """Overflows off the clean image."""
    return image if torch.equal(image, clean) else image * torch.nan


@contextmanager
def with_defect(trained: Examined, index: int, defect: Defect | None) -> Iterator[None]:
    """Puts the defect between data preprocessor and backbone."""
    if defect is None:
        yield
        return
    model = trained.model
    batch = with_images(trained.batches[index], trained.images(index))
    clean = model.data_preprocessor(batch, False)['inputs']

    def change(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (defect(model, inputs[0], clean),)

    handle = model.backbone.register_forward_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()
