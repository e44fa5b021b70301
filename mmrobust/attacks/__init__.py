"""Attacks: algorithms that search the threat model for the largest objective."""

from __future__ import annotations

from .apgd import APGD, LARGER_RADII
from .base import Attack, Oracle
from .ensemble import Ensemble
from .noise import RandomNoise
from .pgd import PGD
from .presets import ATTACK_NAMES, attack_preset
from .square import Square
from .transferable import TransferPGD

__all__ = [
    'APGD',
    'ATTACK_NAMES',
    'LARGER_RADII',
    'PGD',
    'Attack',
    'Ensemble',
    'Oracle',
    'RandomNoise',
    'Square',
    'TransferPGD',
    'attack_preset',
]
