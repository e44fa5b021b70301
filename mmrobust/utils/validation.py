"""Readers of single settings, which name what is wrong with a value."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError


def positive_int(value: Any, name: str) -> int:
    """Reads a count of at least 1.

    Raises:
        ConfigError: for anything else.
    """
    try:
        valid = not isinstance(value, bool) and value == int(value) and value >= 1
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise ConfigError(f'{name}={value!r} must be a whole number of at least 1.')
    return int(value)
