"""Test and validation loops that measure a model without and with attacks."""

from __future__ import annotations

from .adversarial_images import AdversarialImages, dumps_renamed
from .attacker import Attacker
from .box_analysis import BoxAnalysis
from .images import EvaluatedImages, Progress, choose_images, restrict_metrics
from .loops import AttackTestLoop, AttackValLoop
from .original_pixels import as_picture
from .picture_pipeline import PicturePipeline
from .preparation import (
    check_objectives,
    check_patches,
    form_groups,
    weigh_classes,
)
from .visualization import PNG, AttackVisualizationHook, attack_picture

__all__ = [
    'PNG',
    'AdversarialImages',
    'AttackTestLoop',
    'AttackValLoop',
    'AttackVisualizationHook',
    'Attacker',
    'BoxAnalysis',
    'EvaluatedImages',
    'PicturePipeline',
    'Progress',
    'as_picture',
    'attack_picture',
    'check_objectives',
    'check_patches',
    'choose_images',
    'dumps_renamed',
    'form_groups',
    'restrict_metrics',
    'weigh_classes',
]
