"""Robust weights: read from any source, checked against a model, and converted."""

from __future__ import annotations

from .architectures import BACKBONES, recognise
from .checkpoints import (
    check_checkpoint,
    check_initial_weights,
    check_resumable,
    classes_of,
    read_checkpoint,
)
from .convert import Converted, convert
from .families import Architecture
from .normalization import (
    CLIP,
    HALF,
    IMAGENET,
    UNIT,
    Normalization,
    check_normalization,
    note,
)
from .normalization import (
    NAMED as NORMALIZATIONS,
)
from .pretrained import (
    ConvertedWeightsHook,
    PretrainedBackbone,
    PretrainedClassifier,
)
from .sources import SOURCES, Source, Weights, converted_normalization, read_weights

__all__ = [
    'BACKBONES',
    'CLIP',
    'HALF',
    'IMAGENET',
    'NORMALIZATIONS',
    'SOURCES',
    'UNIT',
    'Architecture',
    'Converted',
    'ConvertedWeightsHook',
    'Normalization',
    'PretrainedBackbone',
    'PretrainedClassifier',
    'Source',
    'Weights',
    'check_checkpoint',
    'check_initial_weights',
    'check_normalization',
    'check_resumable',
    'classes_of',
    'convert',
    'converted_normalization',
    'note',
    'read_checkpoint',
    'read_weights',
    'recognise',
]
