"""The demo data, made on the machine that uses them."""

from __future__ import annotations

from .digits import DigitsDataset, digits_root, make_digits

__all__ = ['DigitsDataset', 'digits_root', 'make_digits']
