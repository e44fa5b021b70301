"""Renames weights of other code bases to mmpretrain's names, by rules of layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

from torch import Tensor

from ..errors import ConfigError
from .layouts import LAYOUTS, Layout
from .sources import SOURCES, Weights

# Heads that no classifier here has are not missed; `proj` leads from CLIP to text.
_HEADS = re.compile(r'head|fc\.|classifier\.|aux|proj$')


def find_layout(tensors: Mapping[str, Tensor]) -> Layout | None:
    """Returns the layout that a network's names follow, or None."""
    for layout in LAYOUTS:
        if any(re.match(layout.marker, name) for name in tensors):
            return layout
    return None


def to_mm(
    layout: Layout, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Renames weights to mmpretrain's names.

    Returns:
        The renamed weights, and the names that no rule knows or that would become
        another weight's.
    """
    rules = [(re.compile(pattern), to) for pattern, to in layout.rules]
    renamed, unknown = {}, []
    for name, value in tensors.items():
        for pattern, to in rules:
            if not pattern.match(name):
                continue
            new = pattern.sub(to, name, count=1)
            new = new if new.startswith('head.') else f'backbone.{new}'
            if new not in renamed:
                renamed[new] = _same_numbers(new, _ordered(layout, name, value))
                break
        else:
            unknown.append(name)
    return renamed, unknown


def _ordered(layout: Layout, name: str, value: Tensor) -> Tensor:
    changes = (change for old, change in layout.values if re.match(old, name))
    return next(changes, lambda same: same)(value)


def _same_numbers(name: str, value: Tensor) -> Tensor:
    if re.search(r'pointwise_conv\d\.weight$', name) and value.shape[2:] == (1, 1):
        return value.flatten(1)
    if name.endswith('.gamma') and value.shape[1:] == (1, 1):
        return value.flatten()
    if re.search(r'grn\.(gamma|beta)$', name):
        return value.flatten()
    return value


def rename(weights: Weights, wanted: Set[str] | None = None) -> dict[str, Tensor]:
    """Returns the weights of a file under mmpretrain's names.

    The layout is added to ``weights.source``, and what is not used of a head to
    ``weights.left_out``.

    Args:
        weights: the file.
        wanted: names that a module has. If the file's own names fit it better than
            renamed ones they stay, so that any module's own weights can be loaded.

    Raises:
        ConfigError: if the names are of no known layout and not the module's, or the
            network has parts that mmpretrain's of the same kind does not have.
    """
    state = {
        name if name.startswith('head.') else f'backbone.{name}': value
        for name, value in weights.tensors.items()
    }
    layout = find_layout(weights.tensors)
    if layout is not None:
        renamed, unknown = to_mm(layout, weights.tensors)
        if wanted is None or len(wanted & set(renamed)) >= len(wanted & set(state)):
            state = _without_unknown(weights, layout, renamed, unknown)
            weights.source += f', {layout.name}' * (not weights.meta)
    if layout is None if wanted is None else not wanted & set(state):
        seen = ', '.join(list(weights.tensors)[:3])
        sources = '; '.join(source.name for source in SOURCES if source.tensors)
        raise ConfigError(
            f'{weights.path!r} has names of no known source (it has, for instance, '
            f'{seen}); known are {sources}; and plain weights as '
            f'{"; ".join(layout.name for layout in LAYOUTS)}.'
        )
    return state


def _without_unknown(
    weights: Weights, layout: Layout, renamed: dict[str, Tensor], unknown: list[str]
) -> dict[str, Tensor]:
    """Returns the renamed weights without a head of which only a part is known."""
    wrong = [name for name in unknown if not _HEADS.match(name)]
    if wrong:
        raise ConfigError(
            f'{weights.path!r} ({weights.source}) looks like a {layout.name}, but has '
            f'{len(wrong)} weights that it does not have (for instance {wrong[0]!r}): '
            'it is a variant of which no config is known.'
        )
    heads = [name for name in renamed if name.startswith('head.') and unknown]
    weights.left_out.update([*unknown, *heads])
    return {name: value for name, value in renamed.items() if name not in heads}
