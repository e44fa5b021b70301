"""Universal: one stored perturbation for all images, and its random control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..registry import ATTACKS
from ..universal import Canvas, read_perturbation
from .base import Attack, Generators, Option, Oracle, Preset

_FILE = Option(
    'perturbation',
    'the PNG file of a universal perturbation, from tools/fit_universal.py',
    metavar='FILE',
)


@ATTACKS.register_module()
class Universal(Attack):
    """Adds one perturbation to all images (Moosavi-Dezfooli et al., arXiv 1610.08401).

    It is stretched bilinearly over the part of an image that is the picture, which
    keeps its radius in linf, and clipped to valid pixels.

    Args:
        perturbation: the PNG file; its radius is that of the settings inside of it, or
            the largest value of a file from elsewhere.
        random: add random signs times its radius in its place: what a perturbation
            that nobody fitted does.

    Raises:
        ConfigError: if the file is missing or no perturbation.
    """

    search = 'no search'
    asks = 'nothing'
    options: ClassVar = {'perturbation': _FILE}
    presets: ClassVar = {
        'universal': Preset(
            'nothing: one perturbation for all images, from a file, fitted on others',
            '1610.08401',
        )
    }

    def __init__(self, perturbation: str | None = None, random: bool = False) -> None:
        if perturbation is None:
            raise ConfigError(
                'universal needs a perturbation: give --perturbation FILE, which '
                'tools/fit_universal.py writes.'
            )
        self.stored = read_perturbation(perturbation)
        self.values = self.stored.values
        eps = self.stored.settings.get('eps', float(self.values.abs().max()))
        super().__init__(norm='linf', eps=eps)
        self.baseline = self.random = random
        if random:
            generator = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, self.values.shape, generator=generator) * 2 - 1
            self.values = signs * self.values.abs().max()
        self.canvas = Canvas(self.values.shape[-2:])

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        pairs = zip(images, self.threats(oracle, images), strict=True)
        # Projected, as interpolation rounds.
        return [
            threat.project(image, self.canvas.added(self.values, image, threat))
            for image, threat in pairs
        ]

    def controls(self) -> dict[str, Attack]:
        """See :meth:`Attack.controls`: a random perturbation as large."""
        return {} if self.random else {'random': Universal(self.stored.path, True)}

    def doubts(self, dataset: Any) -> list[str]:
        """See :meth:`Attack.doubts`."""
        return [] if self.random else self.stored.doubts(dataset)

    def describe(self) -> dict[str, Any]:
        """See :meth:`Attack.describe`."""
        told = self.stored.about()
        if self.random:
            told = {'control_of': told['file'], 'sha256': told['sha256']}
        return {**super().describe(), **told}
