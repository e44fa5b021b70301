"""Where weights come from: how each source's files are recognised and unwrapped.

What surrounds a network in its file (wrappers for several devices, attackers,
normalisers, detectors, moving averages) is taken off here; its own names are the
business of :mod:`.layouts`. Facts about the files are from the loaders of
github.com/MadryLab/robustness, github.com/nmndeep/revisiting-at, RobustBench 1.1.1,
github.com/thu-ml/ares and the checkpoints' documentation.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from .config_text import normalization_in
from .fit import read_checkpoint
from .normalization import IMAGENET, UNIT, Normalization, as_normalization, from_tensors

TRUST_SWITCH = (
    'give trust=True to mmrobust.PretrainedBackbone or convert it with '
    'tools/convert_backbone.py --trust'
)

# Meta data of files that tools/convert_backbone.py writes.
META = 'mmrobust_weights'

# Moving averages of weights, which are what is published, come first. mmengine's
# `ema_state_dict` is none of them: its `state_dict` is the average already.
_AVERAGES = ('state_dict_ema', 'model_ema', 'model_state_dict_ema', 'ema')
_CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'net', 'ema_state_dict')
# Where one of these has its weights if it holds more, such as a counter of updates.
_DEEPER = ('module', 'state_dict', 'model')


@dataclass(frozen=True)
class Source:
    """One source of weights.

    Attributes:
        name: for reports.
        recognised: tells by the names of the tensors.
        prefixes: of the wanted tensors; the first that any tensor has is taken off,
            and tensors without it are left out.
        normaliser: prefixes of the tensors that hold mean and std for images in
            [0, 1], as in ``normalize.`` with ``mean`` and ``std``.
        normalization: what the source's networks need when the file has none.
    """

    name: str
    recognised: Callable[[Mapping[str, Tensor]], bool]
    prefixes: tuple[str, ...] = ('',)
    normaliser: tuple[str, ...] = ()
    normalization: Normalization | None = None


def _any(*parts: str) -> Callable[[Mapping[str, Tensor]], bool]:
    patterns = [re.compile(part) for part in parts]
    return lambda names: all(any(p.match(n) for n in names) for p in patterns)


_MEAN = r'(normali[sz]er?|normali[sz]ation|0)\.mean$'

SOURCES = (
    Source(
        'MadryLab robustness, robust-models-transfer',
        _any(r'(attacker\.model|normalizer\.new_mean)'),
        ('model.model.', 'model.'),
        ('normalizer.new_', 'attacker.normalize.new_'),
        IMAGENET,
    ),
    Source(
        'revisiting-at with its normaliser',
        _any(r'base_model\.normalize\.mean'),
        ('base_model.model.',),
        ('base_model.normalize.',),
    ),
    # Without a normaliser these networks take images in [0, 1].
    Source('revisiting-at', _any(r'base_model\.'), ('base_model.',), (), UNIT),
    Source(
        'RobustBench or another classifier with a normaliser',
        _any(rf'({_MEAN}|mu$)'),
        ('model.', '1.', ''),
        ('normalize.', 'normalizer.', 'normalization.', 'normalise.', '0.', ''),
    ),
    Source(
        'a detector or segmenter of OpenMMLab',
        _any(r'backbone\.', r'(neck|\w*_head|encoder|decoder|transformer)\.'),
        ('backbone.',),
    ),
    # The stem gives away networks of arXiv 2303.01870 under shorter names.
    Source(
        'RobustBench (ConvStem)',
        _any(r'(model\.)?(stem|patch_embed\.proj)\.stem\.0\.weight'),
        ('model.', ''),
    ),
    Source('a model of OpenMMLab', _any(r'backbone\.'), ('backbone.',)),
    Source('plain weights', lambda names: True, ('model.', '')),
)

# Files that say nothing about their source but by their name.
_FILE_NAMES: tuple[tuple[str, str, Normalization | None], ...] = (
    (
        r'resnet50_linf_eps4_pure|convnext_tiny_mmcls-linf-eps-4|'
        r'^(frcnn|fcos|dndetr)_(at|convnext)\.pth$',
        'oddefense (arXiv 2305.17438)',
        IMAGENET,
    ),
    (r'ARES_.*_(AT|RB\d?)\.pth$', 'ARES', IMAGENET),
    (r'Singh2023Revisiting_(ConvNeXt|ViT-B)', 'RobustBench', UNIT),
    (
        r'(Singh2023Revisiting_ViT-S|Salman2020Do|Engstrom2019|Wong2020Fast|'
        r'Liu2023Comprehensive_(ConvNeXt|Swin))',
        'RobustBench',
        IMAGENET,
    ),
)
# Activations leave no trace in weights.
_GELU = r'ARES_(ResNet152|Wide_ResNet50_2)_AT'


@dataclass
class Weights:
    """Weights taken out of a file.

    Attributes:
        path: the file.
        source: where they come from.
        tensors: the network's own names and values.
        normalization: what images need; None if it is not known.
        left_out: how many tensors of which part of the file are not the network's.
        meta: what the converter noted in the file, if it did.
    """

    path: str
    source: str
    tensors: dict[str, Tensor]
    normalization: Normalization | None = None
    left_out: Counter = field(default_factory=Counter)
    meta: dict[str, Any] = field(default_factory=dict)


def read_weights(
    path: str,
    trust: bool = False,
    normalization: Any = None,
    switch: str = TRUST_SWITCH,
) -> Weights:
    """Reads a file of any known source.

    Args:
        path: file or URL.
        trust: run what code the file holds.
        normalization: see :func:`~.normalization.as_normalization`; for files that do
            not say theirs.
        switch: how the user can set ``trust``, for the message.

    Raises:
        ConfigError: if the file cannot be read or holds no weights; if it is known to
            be of a network that no config can build; if a given normalisation
            contradicts the file's own.
    """
    file_name = os.path.basename(path)
    if re.search(_GELU, file_name):
        raise ConfigError(
            f'{path!r}: this network of ARES has GELUs where ResNet has ReLUs, which '
            "mmdet's and mmpretrain's ResNet cannot have: use another one."
        )
    checkpoint = read_checkpoint(path, trust, switch)
    name, tensors = _tensors_of(path, checkpoint)
    tensors = _without_wrappers(tensors)
    source = next(s for s in SOURCES if s.recognised(tensors))
    weights = _unwrap(path, source, tensors)
    if name in _AVERAGES:
        weights.source += f', moving average ({name})'
    elif 'ema_state_dict' in checkpoint and name == 'state_dict':
        weights.source += ', moving average (state_dict, as mmengine saves it)'
    meta = checkpoint.get('meta')
    known = converted_normalization(checkpoint)
    if isinstance(meta, dict) and isinstance(meta.get(META), dict):
        weights.meta = meta[META]
        weights.source = f'{weights.meta.get("source")}, converted by mmrobust'
    known = known or weights.normalization or normalization_in(meta)
    for pattern, origin, by_name in _FILE_NAMES:
        if re.search(pattern, file_name) and not weights.meta:
            weights.source = f'{origin} by its name; {weights.source}'
            if known is None and by_name is not None:
                known = _because(by_name, f'as published by {origin}', stated=False)
            break
    if normalization is not None:
        given = as_normalization(normalization)
        if known is not None and known.stated and not known.fits(given):
            raise ConfigError(
                f'normalization: {given} is given, but {path!r} needs {known} '
                f'({known.origin}): leave the setting out.'
            )
        if known is None or not known.fits(given):
            known = _because(given, 'given in the config')
    weights.normalization = known
    return weights


def converted_normalization(checkpoint: Mapping) -> Normalization | None:
    """What tools/convert_backbone.py noted in a checkpoint; None in any other."""
    meta = checkpoint.get('meta')
    noted = meta.get(META) if isinstance(meta, dict) else None
    if not isinstance(noted, dict) or not noted.get('normalization'):
        return None
    return _because(as_normalization(noted['normalization']), 'from its meta')


def _because(
    normalization: Normalization, origin: str, stated: bool = True
) -> Normalization:
    return replace(normalization, origin=origin, stated=stated)


def _tensors_of(path: str, checkpoint: dict) -> tuple[str, dict[str, Tensor]]:
    """The dict of tensors inside a checkpoint, and what it is called there."""
    for name in (*_AVERAGES, *_CONTAINERS, ''):
        held = checkpoint.get(name) if name else checkpoint
        if not isinstance(held, Mapping):
            continue
        for inner in (*(held.get(deeper) for deeper in _DEEPER), held):
            if isinstance(inner, Mapping):
                tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
                if tensors:
                    return name, tensors
    seen = ', '.join(map(str, list(checkpoint)[:5])) or 'nothing'
    raise ConfigError(
        f'{path!r} holds no weights (it has: {seen}); they are looked for in '
        f'{", ".join((*_AVERAGES, *_CONTAINERS))} and on the top level.'
    )


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes off what DataParallel and compile put before every name."""
    for counter in ('steps', 'n_averaged'):
        tensors.pop(counter, None)  # of moving averages
    for prefix in ('module.', '_orig_mod.', 'module.'):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): v for name, v in tensors.items()}
    return tensors


def _first(
    tensors: Mapping[str, Tensor], starts: tuple[str, ...], ends: tuple[str, ...]
) -> str | None:
    names = (start + end for start in starts for end in ends)
    return next((name for name in names if name in tensors), None)


def _unwrap(path: str, source: Source, tensors: dict[str, Tensor]) -> Weights:
    prefix = next(
        (p for p in source.prefixes if any(n.startswith(p) for n in tensors)), ''
    )
    mean = _first(tensors, source.normaliser, ('mean', 'mu'))
    std = _first(tensors, source.normaliser, ('std', 'sigma'))
    weights = Weights(path, source.name, {}, source.normalization)
    for name, value in tensors.items():
        if name in (mean, std):
            continue
        if name.startswith(prefix):
            weights.tensors[name.removeprefix(prefix)] = value
        elif prefix == 'backbone.' and name.startswith('head.'):
            weights.tensors[name] = value  # a classifier's
        else:
            weights.left_out[name.split('.')[0]] += 1
    if mean is not None and std is not None:
        weights.normalization = from_tensors(path, tensors[mean], tensors[std])
    elif source.normalization is not None:
        weights.normalization = _because(
            source.normalization, f'as {source.name} trains', stated=False
        )
    elif 'patch_embed.proj.stem.0.weight' in weights.tensors:
        # RobustBench puts a normaliser before ViT-S and none before ViT-B.
        width = weights.tensors.get('cls_token')
        small = width is not None and width.shape[-1] == 384
        weights.normalization = _because(
            IMAGENET if small else UNIT,
            'as RobustBench loads this network',
            stated=False,
        )
    elif 'stem.stem.0.weight' in weights.tensors:
        weights.normalization = _because(
            UNIT, 'as RobustBench loads this network', stated=False
        )
    return weights
