"""Sources of robust weights: one row each tells how its files are recognised.

What surrounds a network in its file (wrappers for several devices, attackers,
normalisers, detectors, moving averages) is taken off here. The names that the network's
own weights have are the business of :mod:`.layouts`, its shapes that of
:mod:`.architectures`. Facts about the files are from the loaders of
github.com/MadryLab/robustness, github.com/nmndeep/revisiting-at, RobustBench 1.1.1,
github.com/thu-ml/ares, github.com/UCSC-VLAA/AdvXL, github.com/xiaoyunxxy/MIMIR,
github.com/chs20/RobustVLM, and the checkpoints' documentation.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from .checkpoints import read_checkpoint
from .normalization import (
    CLIP,
    IMAGENET,
    UNIT,
    Normalization,
    as_normalization,
    from_config_text,
    from_tensors,
)

# Meta data of files that tools/convert_backbone.py writes.
META = 'mmrobust_weights'

# Moving averages of weights, which are what is published, come first. mmengine's
# `ema_state_dict` is none of them: its `state_dict` is the average already.
_AVERAGES = ('state_dict_ema', 'model_ema', 'model_state_dict_ema', 'ema')
_CONTAINERS = (
    *('state_dict', 'model', 'model_state_dict', 'net', 'ema_state_dict'),
    'vision_encoder_state_dict',
)
# Where one of these has its weights if it holds more, such as a counter of updates.
_DEEPER = ('module', 'state_dict', 'model')


@dataclass(frozen=True)
class Source:
    r"""One source of weights; a new one is a row in ``SOURCES`` and nothing else.

    Rows are tried in turn. The first whose ``tensors`` are all found unwraps the file;
    the first whose ``files`` fits the file's name says who has published it, which may
    be another row, for publishers whose files look like everybody's. For example, a lab
    that saves ``encoder.*`` beside ``projector.*`` and trains on images in [0, 1]::

        from mmrobust.weights import SOURCES, UNIT, Source

        SOURCES.insert(
            0,
            Source(
                'our lab',
                tensors=(r'encoder\.', r'projector\.'),
                prefixes=('encoder.',),
                normalization=UNIT,
            ),
        )

    If the names behind the prefix are those of torchvision, timm, Facebook or
    OpenMMLab, that is all; others need a row in ``mmrobust.weights.layouts.LAYOUTS``.

    Attributes:
        name: for reports.
        tensors: regular expressions, each of which the start of some tensor's name has
            to match (behind what DataParallel and compile add); none for a source that
            only its files' names tell.
        files: regular expression that is searched for in the file's name.
        prefixes: of the wanted tensors; the first that any tensor has is taken off,
            and tensors without it are left out.
        normaliser: prefixes of the tensors that hold mean and std for images in
            [0, 1], as in ``normalize.`` with ``mean`` and ``std``.
        normalization: what the source's networks need when the file has none, or a
            function that tells it from the network's weights.
    """

    name: str
    tensors: tuple[str, ...] = ()
    files: str = ''
    prefixes: tuple[str, ...] = ('',)
    normaliser: tuple[str, ...] = ()
    normalization: Normalization | Callable[[Mapping], Normalization] | None = None

    def holds(self, names: Mapping[str, Any]) -> bool:
        """Tells whether a file with such tensors is of this source."""
        return bool(self.tensors) and all(
            any(re.match(pattern, name) for name in names) for pattern in self.tensors
        )


def _of_convstem(tensors: Mapping[str, Tensor]) -> Normalization:
    """RobustBench puts a normaliser before ViT-S and none before the others."""
    token = tensors.get('cls_token')
    return IMAGENET if token is not None and token.shape[-1] == 384 else UNIT


_MEAN = r'(normali[sz]er?|normali[sz]ation|0)\.mean$'

SOURCES = [
    Source(
        'MadryLab robustness, robust-models-transfer',
        (r'(attacker\.model|normalizer\.new_mean)',),
        prefixes=('model.model.', 'model.'),
        normaliser=('normalizer.new_', 'attacker.normalize.new_'),
        normalization=IMAGENET,
    ),
    Source(
        'revisiting-at with its normaliser',
        (r'base_model\.normalize\.mean',),
        prefixes=('base_model.model.',),
        normaliser=('base_model.normalize.',),
    ),
    # Without a normaliser these networks take images in [0, 1].
    Source(
        'revisiting-at',
        (r'base_model\.',),
        prefixes=('base_model.',),
        normalization=UNIT,
    ),
    Source(
        'RobustBench or another classifier with a normaliser',
        (rf'({_MEAN}|mu$)',),
        prefixes=('model.', '1.', ''),
        normaliser=(
            *('normalize.', 'normalizer.', 'normalization.', 'normalise.', '0.', ''),
        ),
    ),
    Source(
        'a detector or segmenter of OpenMMLab',
        (r'backbone\.', r'(neck|\w*_head|encoder|decoder|transformer)\.'),
        prefixes=('backbone.',),
    ),
    # The stem gives away networks of arXiv 2303.01870 under shorter names.
    Source(
        'RobustBench (ConvStem)',
        (r'(model\.)?(stem|patch_embed\.proj)\.stem\.0\.weight',),
        prefixes=('model.', ''),
        normalization=_of_convstem,
    ),
    Source('a model of OpenMMLab', (r'backbone\.',), prefixes=('backbone.',)),
    Source(
        'CLIP',
        (r'(visual\.)?class_embedding$', r'(visual\.)?transformer\.resblocks\.0\.'),
        prefixes=('visual.', ''),
        normalization=CLIP,
    ),
    Source(
        'CLIP on a network of timm',
        (r'(visual\.)?trunk\.',),
        prefixes=('visual.trunk.', 'trunk.'),
        normalization=CLIP,
    ),
    # Files that say nothing about their source but by their name.
    Source(
        'oddefense (arXiv 2305.17438)',
        files=r'resnet50_linf_eps4_pure|convnext_tiny_mmcls-linf-eps-4|'
        r'^(frcnn|fcos|dndetr)_(at|convnext)\.pth$',
        normalization=IMAGENET,
    ),
    Source('ARES', files=r'ARES_.*_(AT|RB\d?)\.pth$', normalization=IMAGENET),
    Source('AdvXL', files=r'advxl_vit_[hg]14', normalization=IMAGENET),
    Source(
        'RobustBench',
        files=r'Singh2023Revisiting_(ConvNeXt|ViT-B)|Chen2024Data_WRN|Xu2024MIMIR|'
        r'debenedetti2022light-xcit-[sml]-imagenet',
        normalization=UNIT,
    ),
    Source(
        'RobustBench',
        files=r'Singh2023Revisiting_ViT-S|Salman2020Do|Engstrom2019|Wong2020Fast|'
        r'Liu2023Comprehensive_(ConvNeXt|Swin)|Mo2022When_(Swin|ViT)|'
        r'RodriguezMunoz2024Characterizing_Swin',
        normalization=IMAGENET,
    ),
]
_PLAIN = Source('plain weights', prefixes=('model.', ''))

# Activations leave no trace in weights.
_GELU = r'ARES_(ResNet152|Wide_ResNet50_2)_AT'

# Buffers that follow from sizes, and need not be those of another image.
_DERIVED = ('relative_position_index', 'attn_mask')

# A CLIP tower's activation leaves no trace either. timm's fine-tuned ones have GELUs.
_ACTIVATIONS = (
    (r'quick_?gelu|openai(?!_ft)|(fare|tecoa)_eps_\d', 'quick_gelu'),
    (r'laion', 'gelu'),
)

# SHA-256 of published files, where they are known.
PUBLISHED = {
    '9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db': (
        'resnet50_linf_eps4.0.ckpt of madrylab/robust-imagenet-models'
    ),
    '0c725da1789c28168e5697c87b1adf7228527d07f7ad3b5b376271bb22da4ce3': (
        'convnext_tiny_cvst_robust.pt of revisiting-at'
    ),
    '1d2197912aeebb1eaa443df6c79d921470966026bb21529abbaf59bdaecc56a6': (
        'vit_s_cvst_robust.pt of revisiting-at'
    ),
    'ea83ada60aea2ac329d7de7eb00a3bed252b971c790207fb206b5dd2ed8162f8': (
        'convnext_b_cvst_robust.pt of revisiting-at'
    ),
}


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


def read_weights(path: str, trust: bool = False, normalization: Any = None) -> Weights:
    """Reads a file of any known source.

    Args:
        path: file or URL.
        trust: run what code the file holds.
        normalization: see :func:`~.normalization.as_normalization`; for files that do
            not say theirs.

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
    checkpoint = read_checkpoint(path, trust)
    name, tensors = _tensors_of(path, checkpoint)
    source = next((s for s in SOURCES if s.holds(tensors)), _PLAIN)
    if any(name.endswith('flag_update_statistics') for name in tensors):
        raise ConfigError(
            f'{path!r} has the operators of MeanSparse (arXiv 2406.05927) between its '
            "layers, for which mmdet's and mmpretrain's networks have no place, and "
            'without which it is another network: use the one that it was made from.'
        )
    weights = _unwrap(path, source, tensors)
    if name in _AVERAGES:
        weights.source += f', moving average ({name})'
    elif 'ema_state_dict' in checkpoint and name == 'state_dict':
        weights.source += ', moving average (state_dict, as mmengine saves it)'
    meta = checkpoint.get('meta')
    known = converted_normalization(checkpoint)
    known = known or weights.normalization or from_config_text(meta)
    named = next(
        (s for s in SOURCES if s.files and re.search(s.files, file_name)), None
    )
    if isinstance(meta, dict) and isinstance(meta.get(META), dict):
        weights.meta = meta[META]
        weights.source = f'{weights.meta.get("source")}, converted by mmrobust'
    elif named is not None:
        weights.source = f'{named.name} by its name; {weights.source}'
        known = known or _usual(named, weights, f'as published by {named.name}')
    if normalization is not None:
        given = as_normalization(normalization)
        if known is not None and known.stated and not known.fits(given):
            raise ConfigError(
                f'normalization: {given} is given, but {path!r} needs {known} '
                f'({known.origin}): leave the setting out.'
            )
        if known is None or not known.fits(given):
            known = given.because('given in the config')
    weights.normalization = known
    return weights


def activation_of(weights: Weights) -> str | None:
    """Returns the activation of a CLIP tower by its file, if anything there tells it.

    That is what the converter noted, or the names of the file and the folder it is in.

    Returns:
        ``'quick_gelu'``, ``'gelu'`` or None.
    """
    layers = (weights.meta.get('backbone') or {}).get('layer_cfgs')
    if weights.meta:
        return 'quick_gelu' if layers else 'gelu'
    # Hugging Face keeps a repository's files one revision below its name.
    path = re.sub(r'[/\\](resolve|snapshots)[/\\][^/\\]+', '', weights.path.lower())
    name = '/'.join(re.split(r'[/\\]', path)[-2:])
    found = (a for text, a in _ACTIVATIONS if re.search(text, name))
    return next(found, None)


def converted_normalization(checkpoint: Mapping) -> Normalization | None:
    """Returns what the converter noted in a checkpoint; None for any other."""
    meta = checkpoint.get('meta')
    noted = meta.get(META) if isinstance(meta, dict) else None
    if not isinstance(noted, dict) or not noted.get('normalization'):
        return None
    return as_normalization(noted['normalization']).because('from its meta')


def _tensors_of(path: str, checkpoint: dict) -> tuple[str, dict[str, Tensor]]:
    """Finds the dict of tensors inside a checkpoint, and what it is called there."""
    for name in (*_AVERAGES, *_CONTAINERS, ''):
        held = checkpoint.get(name) if name else checkpoint
        if not isinstance(held, Mapping):
            continue
        for inner in (*(held.get(deeper) for deeper in _DEEPER), held):
            if isinstance(inner, Mapping):
                tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
                if tensors:
                    return name, _without_wrappers(tensors)
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


def _unwrap(path: str, source: Source, tensors: dict[str, Tensor]) -> Weights:
    """Takes the network's tensors out of those of its file."""
    prefix = next(
        (p for p in source.prefixes if any(n.startswith(p) for n in tensors)), ''
    )

    def first(*ends: str) -> str | None:
        names = (start + end for start in source.normaliser for end in ends)
        return next((name for name in names if name in tensors), None)

    mean, std = first('mean', 'mu'), first('std', 'sigma')
    weights = Weights(path, source.name, {})
    for name, value in tensors.items():
        if name in (mean, std) or name.endswith(_DERIVED):
            continue
        if name.startswith(prefix):
            weights.tensors[name.removeprefix(prefix)] = value
        elif prefix == 'backbone.' and name.startswith('head.'):
            weights.tensors[name] = value  # a classifier's
        else:
            weights.left_out[name.split('.')[0]] += 1
    if mean is not None and std is not None:
        weights.normalization = from_tensors(path, tensors[mean], tensors[std])
    else:
        weights.normalization = _usual(source, weights, f'as {source.name} trains')
    return weights


def _usual(source: Source, weights: Weights, origin: str) -> Normalization | None:
    """Returns what a source is known for, which a file or a user may know better."""
    known = source.normalization
    if callable(known):
        known = known(weights.tensors)
    return known and known.because(origin, stated=False)
