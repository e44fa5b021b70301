"""PGD of the Adversarial Robustness Toolbox (MIT) on an mmdet model."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import CPU, Batch, Setup
from mmrobust.errors import ConfigError
from mmrobust.utils.seeding import seeded
from torch import Tensor, nn

_INSTALL = 'pip install adversarial-robustness-toolbox'


class ArtPGD:
    """ART's PGD on ART's ``PyTorchObjectDetector``.

    ART has no random start for detectors and returns the last iterate. It gives the
    model images divided by the largest pixel value, in training mode with frozen
    BatchNorm and dropout, and sums the named losses.

    Args:
        packages: of ART, from :func:`art_packages`.
        setup: the detector and the losses to attack.
        eps: radius in pixel units.
        step_size: step in pixel units.
        num_steps: number of steps.
        batch_size: images that go through the network at once.
    """

    def __init__(
        self,
        packages: tuple[Any, Any],
        setup: Setup,
        eps: float,
        step_size: float,
        num_steps: int,
        batch_size: int,
    ) -> None:
        detection, evasion = packages
        self.model = _TorchvisionStyle(setup.model)
        estimator = detection.PyTorchObjectDetector(
            self.model,
            input_shape=(3, -1, -1),
            clip_values=(0, 255),
            attack_losses=tuple(setup.losses),
            device_type='cpu',
        )
        self.attack = evasion.ProjectedGradientDescent(
            estimator,
            norm=np.inf,
            eps=float(eps),
            eps_step=float(step_size),
            max_iter=num_steps,
            batch_size=batch_size,
            verbose=False,
        )

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Attacks all images of the batch at once."""
        if len({image.shape for image in batch.images}) > 1:
            raise ConfigError('ART needs images of one size: use --batch-size 1.')
        self.model.samples = batch.samples
        images = torch.stack(batch.images).numpy()
        truth = [
            {
                'boxes': np.zeros((len(sample.gt_instances), 4), np.float32),
                'labels': sample.gt_instances.labels.numpy(),
            }
            for sample in batch.samples
        ]
        with seeded(batch.seeds[0], CPU):
            return list(torch.from_numpy(self.attack.generate(images, truth)))


class _TorchvisionStyle(nn.Module):
    """An mmdet detector that takes images in [0, 1] and returns losses by name.

    The ground truth is that of ``samples``, prepared once instead of in every step.
    """

    detector: Any
    samples: list[Any]

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def train(self, mode: bool = True) -> _TorchvisionStyle:
        """Leaves all flags to ``loss_mode``, which ART's own would turn wrong."""
        return self

    def forward(self, images: Tensor, truth: list[dict]) -> dict[str, Tensor]:
        """Images (N, C, H, W); the losses, lists of them summed as mmdet does."""
        data = self.detector.data_preprocessor(
            {'inputs': list(images * 255), 'data_samples': self.samples}, False
        )
        losses = self.detector(**data, mode='loss')
        return {
            name: sum(part.mean() for part in loss)
            if isinstance(loss, (list, tuple))
            else loss.mean()
            for name, loss in losses.items()
        }


def art_packages(path: str | None) -> tuple[Any, Any]:
    """ART's packages of object detectors and of attacks.

    Args:
        path: a folder that ART is installed in, or None if it is in the environment.

    Raises:
        ConfigError: if they are not there.
    """
    if path is not None:
        if not (Path(path) / 'art' / 'estimators').is_dir():
            raise ConfigError(
                f'--art {path!r} has no ART in it: {_INSTALL} --target {path}.'
            )
        sys.path.append(str(Path(path).resolve()))
    try:
        return (
            import_module('art.estimators.object_detection'),
            import_module('art.attacks.evasion'),
        )
    except ImportError as error:
        raise ConfigError(
            f'ART cannot be imported ({error}): {_INSTALL}, say with --art where it '
            'is, or leave it out with --no-art.'
        ) from error
