"""Test and validation loops that measure a model without and with attacks."""

from __future__ import annotations

from .adversarial_images import AdversarialImages, dumps_renamed
from .box_analysis import BoxAnalysis
from .images import Progress, choose_images, restrict_metrics
from .loops import AttackTestLoop, AttackValLoop
from .picture_pipeline import PicturePipeline
from .visualization import AttackVisualizationHook

__all__ = [
    'AdversarialImages',
    'AttackTestLoop',
    'AttackValLoop',
    'AttackVisualizationHook',
    'BoxAnalysis',
    'PicturePipeline',
    'Progress',
    'choose_images',
    'dumps_renamed',
    'restrict_metrics',
]
