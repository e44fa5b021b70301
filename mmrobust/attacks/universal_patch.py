"""UniversalPatch: one stored texture on all images, and random and grey controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..patches import Place, paste
from ..registry import ATTACKS
from ..universal import PATCH, read_picture
from .base import Attack, Generators, Option, Oracle, Preset, one_each, regions_of
from .patch import Patch

_FILE = Option(
    'patch',
    'the PNG file of a patch, from tools/fit_universal.py or elsewhere',
    metavar='FILE',
)
_PLACED = ('patch_size', 'patch_place', 'patch_transform')
_GREY = 128.0


@ATTACKS.register_module()
class UniversalPatch(Patch):
    """Pastes one texture onto all images, at every place of a :class:`.Patch`.

    Size, place and transformations are those that it was fitted with, or of a file from
    elsewhere those of a :class:`.Patch`; each image shows every patch in a draw of its
    own.

    Args:
        patch: the PNG file.
        size, place, transform: see :class:`.Patch`; None for those of the file.
        fill: ``'random'`` and ``'grey'`` paste uniform values, the same ones at all
            places of a size, and plain grey: the controls, which are always evaluated
            beside it.

    Raises:
        ConfigError: if the file is missing or no picture of colours, or a setting is
            unknown.
    """

    search = 'no search'
    asks: Literal['gradients', 'values', 'nothing'] = 'nothing'
    options = {'patch': _FILE, **{key: Patch.options[key] for key in _PLACED}}
    presets = {
        'universal-patch': Preset(
            'nothing: one patch for all images, from a file, fitted on others',
            'after AdvPatch, [1904.08653](https://arxiv.org/abs/1904.08653)',
        )
    }

    def __init__(
        self,
        patch: str | None = None,
        size: float | str | Sequence[int] | None = None,
        place: str | Sequence[int] | None = None,
        transform: Mapping[str, float] | str | None = None,
        fill: str = 'file',
    ) -> None:
        if patch is None:
            raise ConfigError(
                'universal-patch needs a patch: give --patch FILE, which '
                'tools/fit_universal.py writes.'
            )
        self.stored = read_picture(patch, PATCH)
        given: dict[str, Any] = {'size': size, 'place': place, 'transform': transform}
        fitted = self.stored.settings.get('patch', {})
        chosen = {**fitted, **{k: v for k, v in given.items() if v is not None}}
        super().__init__(search='grey', **chosen)
        self.search, self.kind, self.baseline = type(self).search, fill, fill != 'file'
        self._given = given

    def controls(self) -> dict[str, Attack]:
        """See :meth:`Attack.controls`: a random and a grey patch."""
        if self.baseline:
            return {}
        path = self.stored.path
        return {
            fill: UniversalPatch(path, **self._given, fill=fill)
            for fill in ('random', 'grey')
        }

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        return pasted(self, self._texture, oracle, images, generator)

    def _texture(self, place: Place) -> Tensor:
        """Returns what is pasted at a place."""
        size = 3, place.height, place.width
        if self.kind == 'grey':
            return torch.full(size, _GREY)
        if self.kind == 'random':
            # Of the place's size, as random values that are resized become grey.
            return 255 * torch.rand(size, generator=torch.Generator().manual_seed(0))
        return self.stored.values

    def doubts(self, dataset: Any) -> list[str]:
        """See :meth:`Attack.doubts`."""
        return [] if self.baseline else self.stored.doubts(dataset)

    def describe(self) -> dict[str, Any]:
        """See :meth:`Attack.describe`."""
        told = self.stored.about()
        if self.baseline:
            told = {'control_of': told['file'], 'sha256': told['sha256']}
        return {**super().describe(), **told}


def pasted(
    attack: Patch,
    texture: Callable[[Place], Tensor],
    oracle: Any,
    images: Sequence[Tensor],
    generator: Generators,
) -> list[Tensor]:
    """Returns images with a texture at every place of an attack, with a gradient.

    Args:
        attack: says where patches lie, and how they are drawn.
        texture: what is pasted at a place, (C, h, w) in pixel units.
        oracle: of the images.
        images: (C, H, W).
        generator: of the draws.
    """
    rows = zip(
        images,
        attack.patches(oracle, images),
        regions_of(oracle, images),
        one_each(generator, images),
        strict=True,
    )
    found = []
    for image, places, region, own in rows:
        for place in places:
            draw = attack.transformations.draw(own)
            image = paste(image, texture(place).to(image), place, draw, region)
        found.append(image)
    return found
