"""Loading weights: robust backbones, and checks that a checkpoint fits."""

from __future__ import annotations

from .fit import check_checkpoint, check_initial_weights, read_checkpoint
from .normalization import check_normalization
from .pretrained import PretrainedBackbone, PretrainedClassifier
from .sources import read_weights

__all__ = [
    'PretrainedBackbone',
    'PretrainedClassifier',
    'check_checkpoint',
    'check_initial_weights',
    'check_normalization',
    'read_checkpoint',
    'read_weights',
]
