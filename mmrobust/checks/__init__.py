"""Checks that tell a robust detector from a weak attack."""

from __future__ import annotations

from .comparison import Figure, comparison_verdicts, figure_of
from .trial import examine, trial_verdicts
from .verdicts import pass_verdicts
from .watch import WatchedOracle

__all__ = [
    'Figure',
    'WatchedOracle',
    'comparison_verdicts',
    'examine',
    'figure_of',
    'pass_verdicts',
    'trial_verdicts',
]
