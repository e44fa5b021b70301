"""Test and validation loops that measure a model without and with attacks."""

from __future__ import annotations

from .adversarial_images import AdversarialImages, dumps_renamed
from .hooks import AttackVisualizationHook
from .loops import AttackTestLoop, AttackValLoop
from .original_pixels import PicturePipeline
from .progress import Progress
from .subset import choose_images

__all__ = [
    'AdversarialImages',
    'AttackTestLoop',
    'AttackValLoop',
    'AttackVisualizationHook',
    'PicturePipeline',
    'Progress',
    'choose_images',
    'dumps_renamed',
]
