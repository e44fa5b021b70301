"""Detectors, backbones and losses that mmdet does not have."""

from __future__ import annotations

from importlib.util import find_spec

from .bounded_loss import BoundedLoss
from .defences import JPEG, BitDepth, MedianFilter, RandomResizing
from .defended import Defended
from .dn_detr import DNDETR, DNDETRHead
from .dn_queries import DnQueryGenerator
from .foreign import ForeignDetector
from .ssd_head import SSDHead
from .swin import SwinTransformer

__all__ = [
    'DNDETR',
    'JPEG',
    'BitDepth',
    'BoundedLoss',
    'DNDETRHead',
    'Defended',
    'DnQueryGenerator',
    'ForeignDetector',
    'MedianFilter',
    'RandomResizing',
    'SSDHead',
    'SwinTransformer',
]

if find_spec('mmpretrain') is not None:  # a detector alone does not need it
    from .convnext import ConvNeXtConvStem, ConvNeXtIsotropic
    from .simple_feature_pyramid import SimpleFeaturePyramid
    from .vit import DeiT3, DeiT3ConvStem, ViTConvStem

    __all__ += [
        'ConvNeXtConvStem',
        'ConvNeXtIsotropic',
        'DeiT3',
        'DeiT3ConvStem',
        'SimpleFeaturePyramid',
        'ViTConvStem',
    ]
