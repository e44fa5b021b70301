"""Loading weights: robust backbones, and checks that a checkpoint fits."""

from __future__ import annotations

from .fit import check_checkpoint, read_checkpoint
from .pretrained import PretrainedBackbone

__all__ = ['PretrainedBackbone', 'check_checkpoint', 'read_checkpoint']
