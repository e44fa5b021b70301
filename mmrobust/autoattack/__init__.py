"""AutoAttack on classifiers, through the package pyautoattack."""

from __future__ import annotations

from .loop import AutoAttackTestLoop
from .members import SETTINGS, VERSIONS, Ensemble, read_balls
from .package import load_package

__all__ = [
    'SETTINGS',
    'VERSIONS',
    'AutoAttackTestLoop',
    'Ensemble',
    'load_package',
    'read_balls',
]
