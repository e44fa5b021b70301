"""Attacks: algorithms that search the threat model for the largest objective."""

from __future__ import annotations

from .base import Attack, Oracle
from .noise import RandomNoise
from .pgd import PGD
from .presets import ATTACK_NAMES, attack_preset

__all__ = ['ATTACK_NAMES', 'PGD', 'Attack', 'Oracle', 'RandomNoise', 'attack_preset']
