"""Detectors, backbones and losses that mmdet does not have."""

from __future__ import annotations

from importlib.util import find_spec

from .bounded_loss import BoundedLoss

__all__ = ['BoundedLoss']

if find_spec('mmpretrain') is not None:  # a detector alone does not need it
    from .convnext_convstem import ConvNeXtConvStem

    __all__ += ['ConvNeXtConvStem']
