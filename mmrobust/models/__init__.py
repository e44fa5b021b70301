"""Detectors, backbones and losses that mmdet does not have."""

from __future__ import annotations

from importlib.util import find_spec

from .bounded_loss import BoundedLoss
from .dn_detr import DNDETR, DNDETRHead
from .dn_queries import DnQueryGenerator
from .ssd_head import SSDHead

__all__ = ['DNDETR', 'BoundedLoss', 'DNDETRHead', 'DnQueryGenerator', 'SSDHead']

if find_spec('mmpretrain') is not None:  # a detector alone does not need it
    from .convnext_convstem import ConvNeXtConvStem
    from .convnext_isotropic import ConvNeXtIsotropic
    from .deit3 import DeiT3, DeiT3ConvStem
    from .simple_feature_pyramid import SimpleFeaturePyramid
    from .vit_convstem import ViTConvStem

    __all__ += [
        'ConvNeXtConvStem',
        'ConvNeXtIsotropic',
        'DeiT3',
        'DeiT3ConvStem',
        'SimpleFeaturePyramid',
        'ViTConvStem',
    ]
