"""Attacks: algorithms that search the threat model for the largest objective."""

from __future__ import annotations

from .apgd import APGD, LARGER_RADII
from .base import Attack, Option, Oracle, Preset, regions_of
from .corrupted import SETS as CORRUPTION_SETS
from .corrupted import Corruption, corrupted, corruption_names
from .ensemble import Ensemble
from .noise import RandomNoise
from .patch import Patch
from .pgd import PGD
from .presets import (
    ATTACK_NAMES,
    OPTIONS,
    attack_preset,
    attack_table,
    attack_texts,
    help_text,
    takes,
)
from .square import Square
from .transferable import TransferPGD
from .universal import Universal
from .universal_patch import UniversalPatch, pasted

__all__ = [
    'APGD',
    'ATTACK_NAMES',
    'CORRUPTION_SETS',
    'LARGER_RADII',
    'OPTIONS',
    'PGD',
    'Attack',
    'Corruption',
    'Ensemble',
    'Option',
    'Oracle',
    'Patch',
    'Preset',
    'RandomNoise',
    'Square',
    'TransferPGD',
    'Universal',
    'UniversalPatch',
    'attack_preset',
    'attack_table',
    'attack_texts',
    'corrupted',
    'corruption_names',
    'help_text',
    'pasted',
    'regions_of',
    'takes',
]
