"""Patches: any search, whose pixels are those of patches and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..objective import expected
from ..patches import (
    BESIDE,
    OBJECT,
    Draw,
    PatchSize,
    Place,
    Transformations,
    paste,
    picture_of,
    places,
)
from ..registry import ATTACKS
from ..utils.validation import did_you_mean, positive_int
from .apgd import APGD
from .base import (
    EOT,
    RESTARTS,
    Attack,
    Generators,
    Option,
    Oracle,
    Preset,
    one_each,
    regions_of,
)
from .pgd import PGD
from .square import Square

_GREY = 128.0
_SEARCHES: dict[str, type[Attack]] = {'apgd': APGD, 'pgd': PGD, 'square': Square}
_CONTROLS = ('random', 'grey')


@ATTACKS.register_module()
class Patch(Attack):
    """Patches of an image's own, on objects, beside them or at a fixed place.

    A patch is a region of the threat model: the search changes its pixels, to any
    value or within a radius, and no other. With transformations the patch is a texture
    that is pasted as :func:`mmrobust.patches.paste` shows it: the search climbs the
    mean over ``eot`` draws, fresh ones in every step, and the image that it gives shows
    every patch as a last draw has it that the search has not seen. Patches that overlap
    share their pixels.

    Beside it two controls are always evaluated, of the same places and draws: random
    values and plain grey.

    An image without an object has no patch on or beside one. Pixels that the pipeline
    padded never change.

    Args:
        size: of a patch, see :meth:`mmrobust.patches.PatchSize.read`; sizes in pixels
            are those of the space that is attacked.
        place: ``'object'``, ``'beside'``, or ``(left, top)`` in pixels of the picture
            (or text, ``'10,20'``), see :func:`mmrobust.patches.places`.
        search: ``'apgd'``, ``'pgd'``, ``'square'`` (without gradients), or the config
            of another search, without norm and eps; ``'random'`` and ``'grey'``
            search nothing.
        norm, eps: of the changes to the patch's pixels; every value is within 255.
        num_steps: steps, or queries of ``'square'``; by default 50, and 1000 queries.
        objective: see :class:`Attack`; by default ``'ranking'``, which lowers AP most
            (docs/patches.md), and what ``Square`` has. A classifier needs ``'total'``.
        restarts: runs per image.
        transform: strengths of drawn transformations by name, see
            :class:`mmrobust.patches.Transformations`, or ``'printed'``.
        eot: draws in each value and gradient, of the transformations and of a
            randomised model.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """

    search = 'any search, by default APGD'
    options = {
        'patch_size': Option(
            'size',
            "share of the box's area below 1, or pixels like 32 or 32x48 (default 0.1)",
        ),
        'patch_place': Option(
            'place',
            "object (default, the middle of each object's box), beside, or LEFT,TOP "
            'in pixels',
        ),
        'patch_search': Option(
            'search',
            'apgd (default, 50 steps), pgd (50 steps), or square (1000 queries), which '
            'needs no gradients',
            choices=tuple(_SEARCHES),
        ),
        'patch_objective': Option(
            'objective',
            'what the search climbs, like ranking (default), total, vanish, cls',
        ),
        'patch_eps': Option(
            'eps', 'radius of the changes inside a patch (default 255: any values)'
        ),
        'patch_transform': Option(
            'transform',
            'drawn transformations, like rotation=20,brightness=25, or printed '
            '(default none)',
            metavar='NAME=STRENGTH,...',
        ),
        'num_steps': PGD.options['num_steps'],
        'restarts': RESTARTS,
        'eot': EOT,
    }
    presets = {
        'patch': Preset(
            'the same as `ranking`, by the pixels of a patch on each object (or '
            'elsewhere), which may have any values',
            'after DPatch, [1806.02299](https://arxiv.org/abs/1806.02299), and '
            'AdvPatch, [1904.08653](https://arxiv.org/abs/1904.08653), image by image',
        )
    }

    def __init__(
        self,
        size: float | str | Sequence[int] = 0.1,
        place: str | Sequence[int] = OBJECT,
        search: str | Mapping[str, Any] = 'apgd',
        norm: str = 'linf',
        eps: float | str = 255,
        num_steps: int | None = None,
        objective: str | Sequence[str] | Mapping[str, Any] | None = None,
        restarts: int = 1,
        transform: Mapping[str, float] | str | None = None,
        eot: int = 1,
    ) -> None:
        self.size, self.place = PatchSize.read(size), _place(place)
        self.transformations = Transformations.read(transform)
        self.draws = positive_int(eot, 'eot')
        # With transformations the mean is over what is pasted, which is done here.
        super().__init__(norm, eps, eot=1 if self.transformations else eot)
        given = {'num_steps': num_steps, 'objective': objective}
        own = {key: each for key, each in given.items() if each is not None}
        self.inner = _search(search, {**own, 'restarts': restarts}, norm, eps)
        self.kind = search if isinstance(search, str) else str(search.get('type'))
        self.objective, self.search = self.inner.objective, self.inner.search
        self.asks, self.reads = self.inner.asks, self.inner.reads
        self.baseline = self.inner.baseline
        self._again: dict[str, Any] = {
            **{'size': size, 'place': place, 'norm': norm, 'eps': eps},
            'transform': transform,
        }

    def controls(self) -> dict[str, Attack]:
        """See :meth:`Attack.controls`: a random and a grey patch."""
        if self.baseline:
            return {}
        return {name: Patch(search=name, **self._again) for name in _CONTROLS}

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        generators = one_each(generator, images)
        rows = zip(
            images,
            self.patches(oracle, images),
            regions_of(oracle, images),
            generators,
            strict=True,
        )
        scenes = [_Scene(*row, self.transformations) for row in rows]
        if not any(scene.places for scene in scenes):
            return list(images)
        # Before the search draws anything: the same of the controls.
        last = [scene.draw() for scene in scenes]
        view: Any = _PatchOracle(oracle, scenes)
        if self.transformations:
            view = expected(view, self.draws)
        found = self.inner.perturb(view, images, generators)
        if not self.transformations:
            return found
        shown = zip(scenes, found, last, strict=True)
        return [scene.shown(image, draws) for scene, image, draws in shown]

    def patches(self, oracle: Oracle, images: Sequence[Tensor]) -> list[list[Place]]:
        """Returns where the patches of each image lie if they are not transformed.

        Raises:
            ConfigError: if patches lie at objects and there are no upright boxes.
        """
        boxes = getattr(oracle, 'boxes', [None] * len(images))
        if isinstance(self.place, str) and any(each is None for each in boxes):
            raise ConfigError(
                f'a patch with place={self.place!r} needs upright boxes of objects, '
                "and there are none: give a fixed place, like place='10,20'."
            )
        rows = zip(images, regions_of(oracle, images), boxes, strict=True)
        return [self._places(*row) for row in rows]

    def check_fits(self, oracle: Oracle, images: Sequence[Tensor]) -> None:
        """Makes sure that the patches of images lie inside them.

        Raises:
            ConfigError: if a patch is larger than a picture, or lies outside of it.
        """
        rows = zip(images, regions_of(oracle, images), strict=True)
        pictures = [picture_of(*row) for row in rows]
        pairs = zip(pictures, self.patches(oracle, images), strict=True)
        for picture, found in pairs:
            height, width = self.size.pixels or (0, 0)
            size = f'{picture.height} x {picture.width} pixels'
            if height > picture.height or width > picture.width:
                raise ConfigError(
                    f'a patch of {height} x {width} pixels is larger than a picture of '
                    f'{size}: give a smaller size.'
                )
            if not found and not isinstance(self.place, str):
                raise ConfigError(
                    f'a patch at {self.place[0]},{self.place[1]} (left, top) lies '
                    f'outside of a picture of {size}: give a place inside.'
                )

    def _places(
        self, image: Tensor, region: Tensor | None, boxes: Tensor | None
    ) -> list[Place]:
        picture = picture_of(image, region)
        boxes = image.new_zeros(0, 4) if boxes is None else boxes
        found = places(boxes, picture, self.size, self.place)
        cut = [place.cut(picture) for place in found]
        return [place for place in cut if place.height and place.width]

    def describe(self) -> dict[str, Any]:
        """See :meth:`Attack.describe`; ``patch`` says what its controls share."""
        where = self.place if isinstance(self.place, str) else list(self.place)
        return {
            **self.inner.describe(),
            'search': self.kind,
            'eot': self.draws,
            'patch': {
                'size': str(self.size),
                'place': where,
                'transform': self.transformations.describe(),
            },
        }


class _Scene:
    """An image (C, H, W) with its patches, whose textures lie in it at their places."""

    def __init__(
        self,
        image: Tensor,
        found: Sequence[Place],
        region: Tensor | None,
        generator: torch.Generator,
        transformations: Transformations,
    ) -> None:
        self.image, self.places, self.picture = image, found, region
        self._generator, self._transformations = generator, transformations
        self.region = torch.zeros_like(image[:1], dtype=torch.bool)
        for place in found:
            self.region[place.window] = True
        if region is not None:
            self.region &= region.to(image.device)

    def draw(self) -> list[Draw]:
        """Draws how each patch is seen."""
        return [self._transformations.draw(self._generator) for _ in self.places]

    def shown(self, textures: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Returns what is seen of textures (C, H, W) that lie at their places."""
        image = self.image
        for place, draw in zip(self.places, draws, strict=True):
            texture = textures[place.window]
            image = paste(image, texture, place, draw, self.picture)
        return image


class _PatchOracle:
    """An oracle of textures, made of one of the images that show them.

    Args:
        oracle: of the images.
        scenes: one for each image.
    """

    def __init__(self, oracle: Any, scenes: Sequence[_Scene]) -> None:
        self._oracle, self._scenes = oracle, scenes
        self.regions = [scene.region for scene in scenes]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._oracle, name)

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """See :class:`Oracle`; textures lie at their places in images (C, H, W)."""
        with torch.no_grad():
            value: Tensor = self._oracle.value(self._shown(images))
        return value

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See :class:`Oracle`."""
        with torch.enable_grad():
            leaves = [image.detach().requires_grad_() for image in images]
            shown = self._shown(leaves)
        values, grads = self._oracle.value_and_grad([each.detach() for each in shown])
        rows = zip(shown, leaves, grads, strict=True)
        return values, [_pulled(*row) for row in rows]

    def _shown(self, images: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(self._scenes, images, strict=True)
        return [scene.shown(image, scene.draw()) for scene, image in pairs]


def _pulled(shown: Tensor, leaf: Tensor, grad: Tensor) -> Tensor:
    if not shown.requires_grad:  # an image without a patch
        return torch.zeros_like(leaf)
    return torch.autograd.grad(shown, leaf, grad)[0]


class _Fill(Attack):
    """Fills the region, without asking the network."""

    search = 'nothing'
    asks = 'nothing'
    baseline = True

    def __init__(self, kind: str, norm: str, eps: float | str) -> None:
        super().__init__(norm=norm, eps=eps)
        self.kind = kind

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`; random values are uniform in the ball."""
        found = []
        rows = zip(
            *(self.threats(oracle, images), images, one_each(generator, images)),
            strict=True,
        )
        for threat, image, own in rows:
            if self.kind == 'grey':
                filled = torch.full_like(image, _GREY)
            elif threat.norm == 'linf':
                low, high = image - threat.eps, image + threat.eps
                low, high = (each.clamp(threat.lo, threat.hi) for each in (low, high))
                drawn = torch.rand(image.shape, generator=own).to(image)
                filled = low + drawn * (high - low)
            else:
                filled = threat.random_boundary(image, own)
            found.append(threat.project(image, filled))
        return found


def _place(value: str | Sequence[int]) -> str | tuple[int, int]:
    if value in (OBJECT, BESIDE):
        return str(value)
    parts: Sequence[Any] = value.split(',') if isinstance(value, str) else value
    try:
        left, top = (int(part) for part in parts)
        if min(left, top) >= 0:
            return left, top
    except (TypeError, ValueError):
        pass
    near = did_you_mean(value, (OBJECT, BESIDE))
    raise ConfigError(
        f'place={value!r} of a patch is unknown{near}: choose {OBJECT!r}, {BESIDE!r}, '
        "or a place like '10,20', pixels from the picture's left and upper edge."
    )


def _search(
    search: str | Mapping[str, Any], given: dict[str, Any], norm: str, eps: float | str
) -> Attack:
    """Builds what moves the pixels of patches."""
    if isinstance(search, str) and search in _CONTROLS:
        return _Fill(search, norm, eps)
    if isinstance(search, str):
        if search not in _SEARCHES:
            near = did_you_mean(search, _SEARCHES)
            raise ConfigError(
                f'the search {search!r} of a patch is unknown{near}: choose from '
                f'{", ".join((*_SEARCHES, *_CONTROLS))}, or give the config of one.'
            )
        if search == 'square':
            given['num_queries'] = given.pop('num_steps', 1000)
        else:
            given = {'num_steps': 50, 'objective': 'ranking', **given}
        return _SEARCHES[search](norm=norm, eps=eps, **given)
    config = {**search, **given, 'norm': norm, 'eps': eps}
    if given['restarts'] == 1:
        config.pop('restarts')
    inner = ATTACKS.build(config)
    if not isinstance(inner, Attack) or isinstance(inner, Patch) or inner.members:
        raise ConfigError(
            f'the search {search!r} of a patch is none: give a search, like '
            "dict(type='mmrobust.APGD')."
        )
    return inner
