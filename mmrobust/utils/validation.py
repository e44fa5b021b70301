"""Readers of single settings, which name what is wrong with a value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ..errors import ConfigError

# Numbers below these are radii for images in [0, 1] by mistake, as far as published
# radii go (linf 16/255, l2 5, l1 75).
_SMALLEST = {'linf': 1.0, 'l2': 10.0, 'l1': 100.0}


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


def to_pixels(value: float | int | str, name: str = 'eps', norm: str = 'linf') -> float:
    """Reads a perturbation size as pixel units of 0-255.

    Args:
        value: a number in pixel units (``4``), or a fraction of the full range as
            text (``'4/255'`` means 4 pixel units, ``'0.5/255'`` half a unit).
        name: how the setting is called in the error message.
        norm: of the size; radii in l2 and l1 are larger.

    Raises:
        ConfigError: if the value is no number, negative, not finite, or so small
            (below 1; in l2 10, in l1 100) that it is meant for images in [0, 1].
    """
    advice = f"write pixel units of 0-255, like {name}=4, or the text '4/255'"
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str) and '/' in value:
            numerator, denominator = (float(part) for part in value.split('/'))
            pixels, fraction = 255 * numerator / denominator, True
        else:
            pixels, fraction = float(value), False
    except (TypeError, ValueError, ZeroDivisionError):
        raise ConfigError(f'{name}={value!r} is not a size: {advice}.') from None
    if not math.isfinite(pixels) or pixels < 0:
        raise ConfigError(f'{name}={value!r} is negative or not finite: {advice}.')
    if 0 < pixels < _SMALLEST.get(norm, 1.0) and not fraction:
        meant = pixels * 255
        raise ConfigError(
            f'{name}={value!r} is below {_SMALLEST[norm]:g} pixel units in {norm} and '
            f'looks like the [0, 1] scale: write {name}={meant:.5g} if that was meant, '
            f"or '{pixels:g}/255' for really {pixels:g} pixel units."
        )
    return pixels
