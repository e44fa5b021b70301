"""Patches: where they lie in a picture, how they are seen, and pasting them into it."""

from __future__ import annotations

from .pasting import paste
from .places import BESIDE, OBJECT, PatchSize, Place, picture_of, places
from .transforms import IDENTITY, Draw, Transformations

__all__ = [
    'BESIDE',
    'IDENTITY',
    'OBJECT',
    'Draw',
    'PatchSize',
    'Place',
    'Transformations',
    'paste',
    'picture_of',
    'places',
]
