"""The normalisation of images that belongs to weights, and a check that a model has it.

Weights that were trained on images in [0, 1] and get ImageNet's mean and std are of no
use, and nothing fails; so what a file needs is read from it wherever it says so.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..errors import ConfigError

# The numbers of one normalisation differ in the third digit between code bases.
_TOLERANCE = 0.1

# Attribute of a module in which its weights' normalisation waits for the check.
_NOTE = 'pretrained_normalization'


@dataclass(frozen=True)
class Normalization:
    """Mean and std that a network's images have to be normalised by.

    Attributes:
        mean: per input channel of the network, in pixel units of 0-255.
        std: as mean.
        rgb: True if the network's channels are red, green, blue, else the reverse.
        origin: how it is known, for messages.
        stated: True if the file itself says so; else it is what its source is known
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
        """Tells whether both are the same but for rounding."""
        own, theirs = (*self.mean, *self.std), (*other.mean, *other.std)
        return (
            self.rgb == other.rgb
            and len(own) == len(theirs)
            and all(abs(a - b) <= _TOLERANCE for a, b in zip(own, theirs, strict=True))
        )

    def because(self, origin: str, stated: bool = True) -> Normalization:
        """Returns the same numbers, known in another way."""
        return replace(self, origin=origin, stated=stated)

    def settings(self, switch: str) -> dict[str, Any]:
        """Returns the settings of a data preprocessor.

        Args:
            switch: how it calls the change from the loader's BGR to RGB:
                ``'bgr_to_rgb'`` in mmdet, ``'to_rgb'`` in mmpretrain.
        """
        return {'mean': list(self.mean), 'std': list(self.std), switch: self.rgb}


def _from_unit(mean: Sequence[float], std: Sequence[float], origin: str) -> Any:
    """Returns a normalisation that is given for images in [0, 1]."""
    means, stds = (
        tuple(round(255 * float(v), 4) for v in each) for each in (mean, std)
    )
    return Normalization(means, stds, origin=origin)


IMAGENET = _from_unit((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'by name')
UNIT = _from_unit((0, 0, 0), (1, 1, 1), 'by name')
HALF = _from_unit((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 'by name')
# Those of OpenAI's towers and of LAION's.
CLIP = _from_unit(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 'by name'
)
NAMED = {'imagenet': IMAGENET, 'unit': UNIT, 'half': HALF, 'clip': CLIP}


def as_normalization(value: Any) -> Normalization:
    """Reads what a user gives.

    Args:
        value: ``'imagenet'``, ``'unit'`` (images in [0, 1]), ``'half'`` (images in
            [-1, 1], as of many ViTs of timm), ``'clip'``, or a dict with ``mean`` and
            ``std`` in pixel units of 0-255 and ``rgb`` (default True).

    Raises:
        ConfigError: for anything else.
    """
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
    """Reads the config of a data preprocessor."""
    settings = preprocessor or {}
    swaps = any(settings.get(k) for k in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    mean, std = settings.get('mean'), settings.get('std')
    return Normalization(
        tuple(map(float, mean if mean is not None else (0, 0, 0))),
        tuple(map(float, std if std is not None else (1, 1, 1))),
        swaps,
        'data_preprocessor',
    )


def _of_preprocessor(preprocessor: Any) -> Normalization | None:
    """Reads a built data preprocessor; None for one without such settings."""
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


def from_tensors(path: str, mean: torch.Tensor, std: torch.Tensor) -> Normalization:
    """Reads the buffers of a normaliser for images in [0, 1].

    Args:
        path: the file they are from.
        mean: one value, or one per channel.
        std: as mean.

    Raises:
        ConfigError: if they cannot be a normaliser's.
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
    return _from_unit(means, stds, 'from inside the file')


def from_config_text(meta: Any) -> Normalization | None:
    """Finds the data preprocessor (mmdet 2: ``img_norm_cfg``) in a checkpoint's meta.

    OpenMMLab's checkpoints carry their config as text. It is a program, and is parsed
    here, never run.

    Returns:
        Its normalisation, or None if there is no config or it has none.
    """
    text = meta.get('cfg', meta.get('config')) if isinstance(meta, dict) else None
    try:
        tree = ast.parse(text if isinstance(text, str) else '')
        found = next(
            of_config(settings)
            for name in ('data_preprocessor', 'img_norm_cfg')
            if (settings := _setting(tree, name))
        )
    except (SyntaxError, TypeError, ValueError, StopIteration):
        return None
    return found.because("from the file's config")


def _setting(tree: ast.Module, name: str) -> dict[str, Any] | None:
    """Returns the last dict of this name: ``model``'s own, else one at the top."""
    own, top = None, None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            getattr(target, 'id', '') == name for target in node.targets
        ):
            top = _as_dict(node.value) or top
        for key, value in _items(node):
            if key == name:
                own = _as_dict(value) or own
    return own or top


def _items(node: ast.AST) -> Iterator[tuple[str | None, ast.expr]]:
    """Yields the keys and values of ``{...}`` and ``dict(...)``."""
    if isinstance(node, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield getattr(key, 'value', None), value


def _as_dict(node: ast.expr) -> dict[str, Any] | None:
    """Reads a dict with a mean; what is no constant in it is left out."""
    settings = {}
    for key, value in _items(node):
        try:
            settings[str(key)] = ast.literal_eval(value)
        except (ValueError, TypeError):
            continue
    return settings if 'mean' in settings else None


def note(module: nn.Module, normalization: Normalization | None) -> None:
    """Leaves with a module what :func:`check_normalization` compares."""
    setattr(module, _NOTE, normalization)


def check_normalization(model: Any, loaded_rgb: bool = False) -> None:
    """Makes sure that images are normalised as the loaded weights expect.

    Initialising a backbone does not see the data preprocessor, so this is a check of
    the whole model, after its weights are initialised and before its first update.

    Args:
        model: a detector or classifier, also inside a wrapper for several processes.
        loaded_rgb: True if images come from the loader in RGB, not in BGR as mmcv
            decodes them.

    Raises:
        ConfigError: if the normalisation that weights came with differs from the
            data preprocessor's, or a module has left them out.
    """
    while isinstance(getattr(model, 'module', None), nn.Module):
        model = model.module
    for name, module in model.named_modules():
        _refuse_unheard(name, module)
        needed = getattr(module, _NOTE, None)
        if needed is None:
            continue
        own = _of_preprocessor(getattr(model, 'data_preprocessor', None))
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


def _refuse_unheard(name: str, module: Any) -> None:
    """Refuses a module that has not run the initialisation by published weights.

    Once it has run, its ``init_cfg`` is another one. Some of mmdet's backbones read the
    file by themselves instead, and stay partly random.
    """
    init = getattr(module, 'init_cfg', None)
    kind = init.get('type') if isinstance(init, dict) else None
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    if kind.rpartition('.')[2] in ('PretrainedBackbone', 'PretrainedClassifier'):
        raise ConfigError(
            f'{name or "the model"} initialises itself in a way of its own, which has '
            f'not loaded the weights of its init_cfg: for a Swin of mmdet take '
            "type='mmrobust.SwinTransformer'."
        )
