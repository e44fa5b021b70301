"""Opens a detector for a fit: its training images, as its test pipeline gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor

from ..attacks import Attack
from ..distributed import same_buffers
from ..errors import ConfigError, doing
from ..evaluation import AttackTestLoop
from ..registry import LOOPS
from ..studies.attack_matrix import Detector
from ..utils.configs import innermost
from ..utils.models import bare_model
from ..utils.seeding import attack_generator, derive_seed, seeded
from ..utils.store import Store

# The attacked image by the variable, the oracle of the clean image, this image, and the
# generator of all draws.
Shown = Callable[[Tensor, Any, Tensor, torch.Generator], Tensor]


def train_split(detector: Detector) -> dict[str, Any]:
    """Returns the config of a detector's training images.

    Wrappers that mix or repeat images are left out.

    Raises:
        ConfigError: if there are none.
    """
    loader = detector.cfg.get('train_dataloader') or {}
    if not loader.get('dataset'):
        raise ConfigError(
            f'config {detector.config!r} has no train_dataloader with a dataset, and '
            'universal perturbations are fitted on training images.'
        )
    parts = [deepcopy(each) for each in innermost(loader['dataset'])]
    return parts[0] if len(parts) == 1 else {'type': 'ConcatDataset', 'datasets': parts}


def opened_on(
    detector: Detector, images: Mapping[str, Any], folder: Path, **loop: Any
) -> Config:
    """Returns the config with which a :class:`FitLoop` opens a detector.

    Args:
        detector: the detector, whose test pipeline shows the images.
        images: config of the dataset, from :func:`train_split`.
        folder: of its log files.
        **loop: settings of the loop.
    """
    tested = innermost(detector.cfg.test_dataloader.dataset)[0]
    dataset = deepcopy(dict(images))
    for part in innermost(dataset):
        part['pipeline'] = tested['pipeline']
    cfg = detector.test_config(folder, type='mmrobust.FitLoop', **loop)
    cfg.test_dataloader = ConfigDict(
        batch_size=1,
        num_workers=0,
        sampler={'type': 'DefaultSampler', 'shuffle': False},
        dataset=dataset,
    )
    cfg.test_evaluator = []  # nothing is scored
    return cfg


@LOOPS.register_module()
class FitLoop(AttackTestLoop):
    """Opens a detector and its images, and hands itself over to :attr:`then`.

    Its one attack says what is maximised in which ball.
    """

    then: Callable[[FitLoop], None]

    def run(self) -> dict[str, float]:
        """Prepares the model as a test does, and calls :attr:`then`."""
        runner = self.runner
        runner.call_hook('before_test')
        runner.call_hook('before_test_epoch')  # which may put averaged weights in place
        with same_buffers(bare_model(runner.model)):
            self.notes = self._prepare().checks
            self.then(self)
        runner.call_hook('after_test_epoch', metrics={})
        runner.call_hook('after_test')
        return {}

    def _start_analysis(self) -> None:
        return None

    def _open_records(self) -> Store:
        return Store(None, {})

    @property
    def attack(self) -> Attack:
        """Returns the one attack."""
        (found,) = self.attacks.values()
        return found

    def first(self) -> tuple[Any, Tensor]:
        """Returns what answers about the first image, and the image (C, H, W)."""
        with self.attacker.asking():
            return self._oracle(self.images.load(0))

    def picture_size(self) -> tuple[int, int]:
        """Height and width of the first image without its padding, as it is shown."""
        oracle, clean = self.first()
        (threat,) = self.attack.threats(oracle, [clean])
        height, width = clean[threat.window()[0]].shape[-2:]
        return height, width

    def gradient(
        self, index: int, variable: Tensor, shown: Shown, step: int
    ) -> tuple[float, Tensor]:
        """The objective of one image, and its gradient with respect to the variable.

        Args:
            index: place of the image in the dataset.
            variable: what is fitted, on any device.
            shown: makes the attacked image of it.
            step: of the fit, on which draws depend.
        """
        part, attacker = self.images.load(index), self.attacker
        seed = derive_seed(self.seed, index, step)
        with (
            doing(f'fitting on image {index} of the training images'),
            attacker.asking(),
            seeded(seed, attacker.device),
        ):
            oracle, clean = self._oracle(part)
            with torch.enable_grad():
                leaf = variable.detach().to(clean).requires_grad_()
                image = shown(leaf, oracle, clean, attack_generator(seed))
            if not image.requires_grad:  # it shows nothing of the variable
                return float(oracle.value([image])), torch.zeros_like(leaf)
            values, (grad,) = oracle.value_and_grad([image.detach()])
            (pulled,) = torch.autograd.grad(image, leaf, grad)
        return float(values), pulled

    def _oracle(self, part: dict) -> tuple[Any, Tensor]:
        """Returns what answers about an image, and the image (C, H, W)."""
        attacker = self.attacker
        oracle = attacker.oracle(self.attack, part, attacker.samples(part))
        (clean,) = attacker.clean(part)
        return oracle, clean
