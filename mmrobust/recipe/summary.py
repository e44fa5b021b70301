"""Says in a few lines what robustify changed in a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from ..errors import short
from ..utils.configs import as_text, type_name


def summary(before: Config, after: Config) -> list[str]:
    """Compares a config with its robust variant.

    Args:
        before: the standard config.
        after: what :func:`.robustify` made of it.

    Returns:
        A line for each part that changed, as ``'part: setting old -> new, ...'``.
    """
    old, new = as_text(before).to_dict(), after.to_dict()
    lines = []
    for part in dict.fromkeys([*old, *new]):
        found = list(_changes(old.get(part), new.get(part), ''))
        # Variables of a config's text are no part of the training.
        if found and isinstance(new.get(part, old.get(part)), (dict, list, bool)):
            lines.append(f'{part}: {", ".join(found)}')
    return lines


def _changes(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yields what differs below a node of both configs."""
    old, new = (list(n) if isinstance(n, tuple) else n for n in (old, new))
    inside = f'{path}.' if path else ''
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict) and _kind(old) == _kind(new):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), f'{inside}{key}')
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(*pair, f'{inside}{index}')
    else:
        yield f'{path} {_shown(old)} -> {_shown(new)}'.strip()


def _kind(node: dict) -> str:
    name = type_name(node)
    return str(node['type']) if name and 'mmrobust' in str(node['type']) else name


def _shown(node: Any) -> str:
    if isinstance(node, dict) and (name := type_name(node)):
        rest = (f'{k}={_shown(v)}' for k, v in node.items() if k != 'type')
        return short(f'{name}({", ".join(rest)})')
    if isinstance(node, dict) and all(isinstance(v, dict) for v in node.values()):
        return ' '.join(node)
    if isinstance(node, (float, int)) and not isinstance(node, bool):
        return f'{node:.6g}'
    return short(str(node))
