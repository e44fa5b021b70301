"""The normalisation in the config text that OpenMMLab checkpoints carry.

The text is a program; it is parsed here, never run.
"""

from __future__ import annotations

import ast
from typing import Any

from .normalization import Normalization, of_config


def normalization_in(meta: Any) -> Normalization | None:
    """Finds the data preprocessor (mmdet 2: ``img_norm_cfg``) in a checkpoint's meta.

    Returns:
        Its normalisation, or None if there is no config or it has none.
    """
    if not isinstance(meta, dict):
        return None
    text = meta.get('cfg', meta.get('config'))
    if not isinstance(text, str):
        return None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    settings = _setting(tree, 'data_preprocessor') or _setting(tree, 'img_norm_cfg')
    if settings is None:
        return None
    try:
        found = of_config(settings)
    except (TypeError, ValueError):
        return None
    return Normalization(found.mean, found.std, found.rgb, "from the file's config")


def _setting(tree: ast.Module, name: str) -> dict[str, Any] | None:
    """The last dict of this name: as ``model``'s own setting, or at the top."""
    own, top = None, None
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == name:
            own = _as_dict(node.value) or own
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == name:
                    own = _as_dict(value) or own
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name
            for target in node.targets
        ):
            top = _as_dict(node.value) or top
    return own or top


def _as_dict(node: ast.AST) -> dict[str, Any] | None:
    """A dict display or call of constants; what is no constant is left out."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.Dict):
        pairs = [
            (getattr(key, 'value', None), value)
            for key, value in zip(node.keys, node.values, strict=True)
        ]
    else:
        return None
    settings = {}
    for key, value in pairs:
        try:
            settings[str(key)] = ast.literal_eval(value)
        except (ValueError, TypeError):
            continue
    return settings if 'mean' in settings else None
