"""Checks that tell a robust detector from a weak attack."""

from __future__ import annotations

from .comparison import comparison_verdicts
from .dataset import (
    check_categories,
    check_has_boxes,
    check_one_image_each,
    gives_rgb,
    keeps_images,
)
from .trial import examine, trial_verdicts
from .watch import WatchedOracle, pass_verdicts

__all__ = [
    'WatchedOracle',
    'check_categories',
    'check_has_boxes',
    'check_one_image_each',
    'comparison_verdicts',
    'examine',
    'gives_rgb',
    'keeps_images',
    'pass_verdicts',
    'trial_verdicts',
]
