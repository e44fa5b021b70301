"""Turning a standard mmdet config into its robust variant."""

from __future__ import annotations

from ..weights import BACKBONES
from .robustify import METHODS, PRESETS, robustify
from .summary import summary

__all__ = ['BACKBONES', 'METHODS', 'PRESETS', 'robustify', 'summary']
