"""Detectors that MMDetection lacks."""

from __future__ import annotations

from .dn_detr import DNDETR, DNDETRHead
from .dn_queries import DnQueryGenerator

__all__ = ['DNDETR', 'DNDETRHead', 'DnQueryGenerator']
