"""Pictures as they lie on disk: attacked there, rounded there, and scored again."""

from __future__ import annotations

from .eight_bit import as_picture, radius, through_file
from .oracle import ResizedOracle
from .pipeline import PicturePipeline
from .resize import Geometry, Resizer

__all__ = [
    'Geometry',
    'PicturePipeline',
    'ResizedOracle',
    'Resizer',
    'as_picture',
    'radius',
    'through_file',
]
