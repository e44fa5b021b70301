"""Fits universal perturbations to one or several detectors on training images."""

from __future__ import annotations

from .ascent import Ascent
from .fit import Plan, fit_universal
from .loop import FitLoop

__all__ = ['Ascent', 'FitLoop', 'Plan', 'fit_universal']
