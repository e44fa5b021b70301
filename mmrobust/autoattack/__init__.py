"""AutoAttack on classifiers, through the package pyautoattack."""

from __future__ import annotations

from .loop import AutoAttackTestLoop

__all__ = ['AutoAttackTestLoop']
