"""Checks that tell a robust detector from a weak attack."""

from __future__ import annotations

from .classes import check_classes
from .comparison import comparison_verdicts
from .dataset import (
    check_has_boxes,
    check_one_image_each,
    gives_rgb,
    keeps_images,
)
from .metrics import (
    check_metrics,
    figures_disagree,
    qualities_disagree,
    scores_image_by_image,
)
from .paths import path_difference
from .trial import examine, trial_verdicts
from .watch import WatchedOracle, pass_verdicts

__all__ = [
    'WatchedOracle',
    'check_classes',
    'check_has_boxes',
    'check_metrics',
    'check_one_image_each',
    'comparison_verdicts',
    'examine',
    'figures_disagree',
    'gives_rgb',
    'keeps_images',
    'pass_verdicts',
    'path_difference',
    'qualities_disagree',
    'scores_image_by_image',
    'trial_verdicts',
]
