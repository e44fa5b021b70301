"""Detectors, heads and losses that mmdet does not have."""

from __future__ import annotations

from .bounded_loss import BoundedLoss

__all__ = ['BoundedLoss']
