"""Fits universal perturbations to one or several detectors on training images."""

from __future__ import annotations

from .ascent import Ascent
from .fit import Plan, fit_universal
from .loop import FitLoop
from .variables import Perturbation, Texture, Variable

__all__ = [
    'Ascent',
    'FitLoop',
    'Perturbation',
    'Plan',
    'Texture',
    'Variable',
    'fit_universal',
]
