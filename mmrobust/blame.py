"""Stands in for names of former times until their last uses are gone."""

from __future__ import annotations

from contextlib import AbstractContextManager

from .errors import doing, short

__all__ = ['models_own', 'short']


def models_own() -> AbstractContextManager[None]:
    """Says of an error from inside that no attack was going on."""
    return doing('using the model without any attack')
