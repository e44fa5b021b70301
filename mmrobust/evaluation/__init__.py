"""Test and validation loops that measure a model without and with attacks."""

from __future__ import annotations

from .hooks import AttackVisualizationHook
from .loops import AttackTestLoop, AttackValLoop

__all__ = ['AttackTestLoop', 'AttackValLoop', 'AttackVisualizationHook']
