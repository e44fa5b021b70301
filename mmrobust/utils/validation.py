"""Readers of single settings, which name what is wrong with a value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ..errors import ConfigError


def positive_int(value: Any, name: str) -> int:
    """Reads a count of at least 1, see :func:`whole_number`."""
    return whole_number(value, name, least=1)


def whole_number(value: Any, name: str, least: int = 0) -> int:
    """Reads a whole number of at least ``least``.

    Raises:
        ConfigError: for anything else.
    """
    try:
        valid = not isinstance(value, bool) and value == int(value) and value >= least
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise ConfigError(
            f'{name}={value!r} must be a whole number of at least {least}.'
        )
    return int(value)


def number(value: Any, name: str, largest: float = math.inf) -> float:
    """Reads a number from 0 to ``largest``, or a finite one from 0 up.

    Raises:
        ConfigError: for anything else.
    """
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found <= largest or math.isinf(found):
        limits = 'of at least 0' if math.isinf(largest) else f'from 0 to {largest:g}'
        raise ConfigError(f'{name}={value!r} must be a number {limits}.')
    return found


def share(value: Any, name: str) -> float:
    """Reads a share, which is above 0 and at most 1.

    Raises:
        ConfigError: for anything else.
    """
    try:
        found = number(value, name, 1)
    except ConfigError:
        found = 0.0
    if not found:
        raise ConfigError(f'{name}={value!r} must be a share above 0 and at most 1.')
    return found


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'pgd'?)"`` for a near miss of a name, else ``''``."""
    near = get_close_matches(str(name), list(known), 1)
    return f' (did you mean {near[0]!r}?)' if near else ''
