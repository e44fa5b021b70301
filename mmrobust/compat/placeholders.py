"""Repair of modules that were imported before mmcv's operators were there.

OneDL's mmdet wraps ``from mmcv.ops import ...`` in ``try`` and, on ImportError,
defines a function or class of the same name that raises when it is used. Such a
placeholder outlives the installation of the stand-in. So does the gap that
``mmcv.cnn.bricks.transformer`` keeps, on every stack, where it could not import
MultiScaleDeformableAttention, and mmdet's Deformable DETR imports it from there.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGES = ('mmcv', 'mmdet', 'mmpretrain')


def _guarded_imports(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Yield the imports from mmcv that ``module`` does inside a ``try``.

    Args:
        module: An imported module; one without readable source yields nothing.

    Yields:
        tuple[str, str, str]: Where the object comes from (``mmcv.ops.nms``), its
        name there and its name in ``module``.
    """
    file = getattr(module, '__file__', None)
    if not file or not file.endswith('.py'):
        return
    try:
        source = Path(file).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError):
        return
    if 'from mmcv.' not in source or '\ntry:' not in source:  # parsing is what costs
        return
    for block in ast.parse(source).body:
        if not isinstance(block, ast.Try):
            continue
        for statement in block.body:
            if isinstance(statement, ast.ImportFrom) and (
                f'{statement.module}'.startswith('mmcv.')
            ):
                for alias in statement.names:
                    yield str(statement.module), alias.name, alias.asname or alias.name


def _is_placeholder(value: Any, module: ModuleType) -> bool:
    """Tell whether ``value``, bound where an import should be, is a replacement.

    What an import had brought would have been defined in mmcv.
    """
    return value is None or getattr(value, '__module__', None) == module.__name__


def repair_placeholders() -> list[str]:
    """Bind mmcv's operators in the imported modules that had to do without.

    Returns:
        list[str]: The dotted names that were bound anew, sorted.
    """
    # mmcv comes first by its name, so that what mmdet imports from it is repaired.
    modules = [
        module
        for name, module in sorted(sys.modules.items())
        if name.partition('.')[0] in _PACKAGES and isinstance(module, ModuleType)
    ]
    repaired: set[str] = set()
    replaced: dict[int, tuple[Any, Any]] = {}
    for module in modules:
        for source, name, bound in _guarded_imports(module):
            placeholder = vars(module).get(bound)
            if not _is_placeholder(placeholder, module):
                continue
            try:
                real = getattr(importlib.import_module(source), name)
            except (ImportError, AttributeError):
                continue
            setattr(module, bound, real)
            repaired.add(f'{module.__name__}.{bound}')
            if placeholder is not None:
                # Held, so that no new object can take over its id.
                replaced[id(placeholder)] = (placeholder, real)
    # Packages re-export names of their modules, which binds the placeholder again.
    for module in modules:
        for bound, value in list(vars(module).items()):
            if id(value) in replaced:
                setattr(module, bound, replaced[id(value)][1])
                repaired.add(f'{module.__name__}.{bound}')
    return sorted(repaired)
