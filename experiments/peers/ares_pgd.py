"""PGD of ARES 2.0 (https://github.com/thu-ml/ares, Apache-2.0) on an mmdet model.

ARES is imported from a checkout; nothing of it is part of mmrobust.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from inputs import CPU, Batch, Setup
from mmrobust.errors import ConfigError
from mmrobust.threat import ThreatModel
from mmrobust.utils.seeding import attack_generator, seeded
from torch import Tensor


class AresPGD:
    """ARES's PGD as its attacker calls it, with what it gets wrong put right for it.

    ARES takes the preprocessed batch back to [0, 1], with the padding, in the
    network's order of channels, and starts at a random point. Its own script puts the
    ground truth into the input frame, sets the training flag of the detector only
    (not of the heads: FCOS then compares scaled with unscaled boxes) and freezes the
    weights. Here the caller's ``loss_mode`` sets the heads too.

    Its start may lie outside of the valid pixels, by which it differs from mmrobust's.

    Args:
        attack: ARES's PGD, from :func:`ares_attack`.
        setup: the detector and the losses to attack.
        eps: radius in pixel units.
        step_size: step in pixel units.
        num_steps: number of steps.
        same_start: start where mmrobust does, so that nothing is left to chance.

    Raises:
        ConfigError: if ARES cannot attack this model or these losses.
    """

    def __init__(
        self,
        attack: type,
        setup: Setup,
        eps: float,
        step_size: float,
        num_steps: int,
        same_start: bool = False,
    ) -> None:
        self.model = setup.model
        self.start = ThreatModel('linf', eps) if same_start else None
        preprocessor = self.model.data_preprocessor
        if not getattr(preprocessor, '_enable_normalize', False):
            raise ConfigError(
                'ARES needs a data preprocessor with mean and std: set '
                'model.data_preprocessor.mean="[0,0,0]" and std="[1,1,1]".'
            )
        self.excluded = setup.other_losses
        if any(other in name for other in self.excluded for name in setup.losses):
            raise ConfigError(
                'ARES leaves losses out by parts of their names, and so cannot tell '
                f'{", ".join(setup.losses)} from {", ".join(self.excluded)}: choose '
                'other --losses, or leave --ares out.'
            )
        self.attack = attack(
            self.model,
            device='cpu',
            norm=np.inf,
            eps=eps / 255,
            stepsize=step_size / 255,
            steps=num_steps,
        )

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Attacks all images of the batch at once."""
        preprocessor = self.model.data_preprocessor
        data = preprocessor(
            {'inputs': batch.images, 'data_samples': batch.samples}, False
        )
        mean, std = preprocessor.mean, preprocessor.std
        data['inputs'] = (data['inputs'] * std + mean) / 255
        with seeded(batch.seeds[0], CPU), self._start(batch, data['inputs']):
            found = self.attack.attack_detection_forward(data, self.excluded, 255.0)
        found = found.detach() * 255
        if preprocessor._channel_conversion:
            found = found.flip(1)
        return [
            image[:, : clean.shape[1], : clean.shape[2]]
            for image, clean in zip(found, batch.images, strict=True)
        ]

    @contextmanager
    def _start(self, batch: Batch, inputs: Tensor) -> Iterator[None]:
        """Puts mmrobust's draws in place of ARES's, if asked for."""
        if self.start is None:
            yield
            return
        draws = torch.full_like(inputs, 0.5)
        for draw, clean, seed in zip(draws, batch.images, batch.seeds, strict=True):
            start = self.start.random_start(clean, attack_generator(seed))
            uniform = ((start - clean) / self.start.eps + 1) / 2
            if self.model.data_preprocessor._channel_conversion:
                uniform = uniform.flip(0)
            draw[:, : clean.shape[1], : clean.shape[2]] = uniform
        with patch.object(torch, 'rand_like', lambda _: draws):
            yield


def ares_attack(path: str) -> type:
    """ARES's PGD in a checkout.

    Raises:
        ConfigError: if it is not there or cannot be imported.
    """
    root = Path(path).resolve() / 'ares'
    if not (root / 'attack' / 'pgd.py').is_file():
        raise ConfigError(
            f'--ares {path!r} has no ares/attack/pgd.py: give a checkout of '
            'https://github.com/thu-ml/ares.'
        )
    # The packages' own __init__ import everything, with many more requirements.
    for name, folder in (('ares', root), ('ares.attack', root / 'attack')):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    try:
        return import_module('ares.attack.pgd').PGD
    except ImportError as error:
        raise ConfigError(
            f'ARES cannot be imported ({error}): install what it needs.'
        ) from error
