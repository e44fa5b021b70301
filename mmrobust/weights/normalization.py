"""The normalisation that belongs to weights, and whether a model's images get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..errors import ConfigError

# The numbers of one normalisation differ in the third digit between code bases.
_TOLERANCE = 0.1

# Where PretrainedBackbone leaves what its file says, for check_normalization.
NOTE = 'pretrained_normalization'


@dataclass(frozen=True)
class Normalization:
    """Mean and std that a network's images have to be normalised by.

    Attributes:
        mean: per input channel of the network, in pixel units of 0-255.
        std: as mean.
        rgb: whether the network's channels are red, green, blue, else the reverse.
        origin: how it is known, for messages.
        stated: whether the file itself says so; else it is what its source is known
            for, which a user may know better.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rgb: bool = True
    origin: str = ''
    stated: bool = True

    def __str__(self) -> str:
        """Both numbers and the order, shortly."""
        mean, std = (
            '[' + ', '.join(f'{value:g}' for value in values) + ']'
            for values in (self.mean, self.std)
        )
        return f'mean {mean}, std {std}, {"RGB" if self.rgb else "BGR"}'

    def fits(self, other: Normalization) -> bool:
        """Whether both are the same but for rounding."""
        return self.rgb == other.rgb and all(
            len(own) == len(theirs)
            and all(abs(a - b) <= _TOLERANCE for a, b in zip(own, theirs, strict=True))
            for own, theirs in ((self.mean, other.mean), (self.std, other.std))
        )

    def settings(self, switch: str) -> dict[str, Any]:
        """Settings of a data preprocessor.

        Args:
            switch: how it calls the change from the loader's BGR to RGB:
                ``'bgr_to_rgb'`` in mmdet, ``'to_rgb'`` in mmpretrain.
        """
        return {'mean': list(self.mean), 'std': list(self.std), switch: self.rgb}

    def as_meta(self) -> dict[str, Any]:
        """Plain values for a checkpoint's meta data."""
        return {'mean': list(self.mean), 'std': list(self.std), 'rgb': self.rgb}


def from_unit(mean: Sequence[float], std: Sequence[float], origin: str) -> Any:
    """Normalisation given for images in [0, 1]."""
    return Normalization(
        tuple(round(255 * float(value), 4) for value in mean),
        tuple(round(255 * float(value), 4) for value in std),
        origin=origin,
    )


IMAGENET = from_unit((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'by name')
UNIT = from_unit((0, 0, 0), (1, 1, 1), 'by name')
HALF = from_unit((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 'by name')
NAMED = {'imagenet': IMAGENET, 'unit': UNIT, 'half': HALF}


def as_normalization(value: Any) -> Normalization:
    """Reads what a user gives.

    Args:
        value: ``'imagenet'``, ``'unit'`` (images in [0, 1]), ``'half'`` (images in
            [-1, 1], as of many ViTs of timm), or a dict with ``mean`` and ``std`` in
            pixel units of 0-255 and ``rgb`` (default True).

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(value, Normalization):
        return value
    if isinstance(value, str) and value in NAMED:
        return NAMED[value]
    if isinstance(value, Mapping) and {'mean', 'std'} <= set(value):
        return Normalization(
            tuple(map(float, value['mean'])),
            tuple(map(float, value['std'])),
            bool(value.get('rgb', True)),
            'given',
        )
    raise ConfigError(
        f'normalization={value!r} is unknown: give one of {", ".join(NAMED)}, or '
        'dict(mean=[...], std=[...], rgb=True) in pixel units of 0-255.'
    )


def of_config(preprocessor: Mapping | None) -> Normalization:
    """Normalisation of a data preprocessor's config."""
    settings = preprocessor or {}
    swaps = any(settings.get(k) for k in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    mean, std = settings.get('mean'), settings.get('std')
    return Normalization(
        tuple(map(float, mean if mean is not None else (0, 0, 0))),
        tuple(map(float, std if std is not None else (1, 1, 1))),
        swaps,
        'data_preprocessor',
    )


def of_preprocessor(preprocessor: Any) -> Normalization | None:
    """Normalisation of a built data preprocessor; None for one without settings."""
    while isinstance(getattr(preprocessor, 'data_preprocessor', None), nn.Module):
        preprocessor = preprocessor.data_preprocessor  # of several branches
    swaps = getattr(preprocessor, '_channel_conversion', None)  # mmengine, mmdet
    if swaps is None:
        swaps = getattr(preprocessor, 'to_rgb', None)  # mmpretrain
    enabled = getattr(preprocessor, '_enable_normalize', None)
    if swaps is None or enabled is None:
        return None
    settings: dict[str, Any] = {'to_rgb': swaps}
    if enabled:
        settings['mean'] = preprocessor.mean.flatten().tolist()
        settings['std'] = preprocessor.std.flatten().tolist()
    return of_config(settings)


def check_normalization(model: Any, loaded_rgb: bool = False) -> None:
    """Makes sure that images are normalised as the loaded weights expect.

    Initialising a backbone does not see the data preprocessor, so this is a check of
    the whole model, after its weights are initialised and before its first update.

    Args:
        model: a detector or classifier, also inside a wrapper for several processes.
        loaded_rgb: whether images come from the loader in RGB, not in BGR as mmcv
            decodes them.

    Raises:
        ConfigError: if the normalisation that weights came with differs from the
            data preprocessor's.
    """
    while isinstance(getattr(model, 'module', None), nn.Module):
        model = model.module
    for name, module in model.named_modules():
        needed = getattr(module, NOTE, None)
        if needed is None:
            continue
        own = of_preprocessor(getattr(model, 'data_preprocessor', None))
        if own is None:
            print_log(
                f'The weights of {name or "the model"} need images of {needed}; '
                'whether the data preprocessor gives them cannot be told.',
                logger='current',
            )
            continue
        own = replace(own, rgb=own.rgb != loaded_rgb)
        if not needed.fits(own):
            raise ConfigError(
                f'the weights of {name or "the model"} need images of {needed} '
                f'({needed.origin}), but the data_preprocessor has {own}: set '
                f'model.data_preprocessor to the former.'
            )


def note(module: nn.Module, normalization: Normalization | None) -> None:
    """Leaves what :func:`check_normalization` compares."""
    setattr(module, NOTE, normalization)


def from_tensors(path: str, mean: torch.Tensor, std: torch.Tensor) -> Normalization:
    """Buffers of a normaliser for images in [0, 1]: one value, or one per channel.

    Raises:
        ConfigError: if they cannot be one.
    """
    values = [tensor.flatten().tolist() for tensor in (mean, std)]
    means, stds = (each * 3 if len(each) == 1 else each for each in values)
    if (
        len(means) != 3
        or len(stds) != 3
        or not all(-1 <= value <= 1 for value in means)
        or not all(0 < value <= 1 for value in stds)
    ):
        raise ConfigError(
            f'{path!r} has a normaliser of mean {values[0]} and std {values[1]}, which '
            'is none for three channels in [0, 1]: remove it from the file and give '
            'the normalisation in pixel units of 0-255.'
        )
    return from_unit(means, stds, 'from inside the file')
