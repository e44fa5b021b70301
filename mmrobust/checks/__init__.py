"""Checks that tell a robust detector from a weak attack."""

from __future__ import annotations

from .comparison import comparison_verdicts
from .trial import examine, trial_verdicts
from .verdicts import pass_verdicts
from .watch import WatchedOracle

__all__ = [
    'WatchedOracle',
    'comparison_verdicts',
    'examine',
    'pass_verdicts',
    'trial_verdicts',
]
