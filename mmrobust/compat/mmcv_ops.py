"""A stand-in for ``mmcv._ext``, mmcv's compiled operators.

mmcv-lite, and builds of mmcv without a compiler, come without ``mmcv._ext``, and
then neither ``mmcv.ops`` nor ``mmdet.models`` can be imported. :func:`install` puts
a module of that name in place whose functions (see :mod:`.kernels`) are written on
torchvision's kernels and plain torch, with the signatures that ``mmcv/ops/*.py``
calls. A compiled ``mmcv._ext`` is never replaced.

Modules that were imported before are repaired: OneDL's mmdet wraps ``from mmcv.ops
import ...`` in ``try`` and, on ImportError, defines a function or class of the same
name that raises when it is used. Such a placeholder outlives the installation of the
stand-in. So does the gap that ``mmcv.cnn.bricks.transformer`` keeps, on every stack,
where it could not import MultiScaleDeformableAttention, and mmdet's Deformable DETR
imports it from there.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_NAME = 'mmcv._ext'
_PACKAGES = ('mmcv', 'mmdet', 'mmpretrain')


class _StandinLoader(Loader):
    """The loader of the stand-in.

    mmengine asks for the loader of ``mmcv._ext`` to learn whether mmcv's operators
    are there, so the module needs one although nothing is left to load.
    """

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Returns the module of ``spec``, which is complete from the start."""
        return StandinExtension(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: the operators are looked up when they are asked for."""


class StandinExtension(ModuleType):
    """A module that offers every operator name.

    Names that :mod:`.kernels` covers give the kernel; any other name gives a
    function that raises when it is called. mmcv checks at import that each of its
    some hundred operators exists, so a missing one must not be missed before then.
    """

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(_NAME, "mmrobust's stand-in for mmcv's compiled operators.")
        self.__spec__ = spec
        self.__loader__ = spec.loader
        self.__package__ = 'mmcv'

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(f'module {_NAME!r} has no attribute {name!r}')
        # Imported here because it needs torch and torchvision, which a process
        # that only asks for mmrobust's version should not have to wait for.
        from .kernels import KERNELS

        operator = KERNELS.get(name) or _missing(name)
        setattr(self, name, operator)
        return operator


def _missing(name: str) -> Callable[..., NoReturn]:
    """Returns a function that says that the operator ``name`` is not covered."""

    def raise_missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"mmcv's operator '{name}' is not available: the installed mmcv has no "
            "compiled operators (mmcv-lite, or a build without them) and mmrobust's "
            'stand-in does not cover this one, so install full mmcv '
            '(`mim install mmcv`, or a compiled build of it).'
        )

    raise_missing.__name__ = raise_missing.__qualname__ = name
    return raise_missing


def _mmcv_lacks_extension() -> bool:
    """Tells whether mmcv is installed without ``mmcv._ext``."""
    try:
        mmcv = importlib.util.find_spec('mmcv')
    except ValueError:  # a module without a spec: nothing that a package manager put
        return False
    if mmcv is None or mmcv.submodule_search_locations is None:
        return False
    # find_spec('mmcv._ext') would import mmcv, with OpenCV and torch behind it,
    # only to answer that; looking into mmcv's folders does not.
    return PathFinder.find_spec(_NAME, mmcv.submodule_search_locations) is None


def is_standin_active() -> bool:
    """Tells whether ``mmcv._ext`` is mmrobust's stand-in in this process."""
    return isinstance(sys.modules.get(_NAME), StandinExtension)


def install() -> bool:
    """Lets the stand-in take the place of ``mmcv._ext`` if that is missing.

    Modules of mmdet that were imported before, and that keep functions which only
    raise in the place of mmcv's operators, get the real ones.

    Returns:
        True if the stand-in is active afterwards; False if mmcv is not
        installed or has its own compiled operators.
    """
    if is_standin_active():
        return True
    if _NAME in sys.modules or not _mmcv_lacks_extension():
        return False
    spec = ModuleSpec(_NAME, _StandinLoader(), origin='mmrobust')
    extension = StandinExtension(spec)
    sys.modules[_NAME] = extension
    if 'mmcv' in sys.modules:
        sys.modules['mmcv']._ext = extension  # type: ignore[attr-defined]
    repair_placeholders()
    return True


def _guarded_imports(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Yields the imports from mmcv that ``module`` does inside a ``try``.

    Args:
        module: an imported module; one without readable source yields nothing.

    Yields:
        Where the object comes from (``mmcv.ops.nms``), its
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
    """Tells whether ``value``, bound where an import should be, is a replacement.

    What an import had brought would have been defined in mmcv.
    """
    return value is None or getattr(value, '__module__', None) == module.__name__


def repair_placeholders() -> list[str]:
    """Binds mmcv's operators in the imported modules that had to do without.

    Returns:
        The dotted names that were bound anew, sorted.
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
