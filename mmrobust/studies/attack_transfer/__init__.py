"""Adversarial images of N detectors, shown to M detectors."""

from __future__ import annotations

from .loop import TransferTestLoop
from .matrix import Entry, Matrix
from .plan import Detector, Plan, parse_detectors
from .study import run_matrix

__all__ = [
    'Detector',
    'Entry',
    'Matrix',
    'Plan',
    'TransferTestLoop',
    'parse_detectors',
    'run_matrix',
]
