"""Does something as soon as a module has been imported, by whoever needs it first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def after_import(name: str, action: Callable[[], Any]) -> None:
    """Calls a function once a module is there: now, or right after its import.

    Args:
        name: a module, which need not be installed.
        action: what is called; what it returns is ignored.
    """
    if name in sys.modules:
        action()
        return
    for finder in sys.meta_path:
        if isinstance(finder, _Watch) and finder.name == name:
            if action not in finder.actions:
                finder.actions.append(action)
            return
    sys.meta_path.insert(0, _Watch(name, action))


class _Watch(MetaPathFinder):
    """Finds a module as the other finders do, and has it loaded by a :class:`_Loader`.

    It goes when the module has been loaded: who only asks where a module is, as
    ``importlib.util.find_spec`` does, loads nothing.
    """

    def __init__(self, name: str, action: Callable[[], Any]) -> None:
        self.name, self.actions = name, [action]

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Returns the spec of the watched module, None for all others."""
        if fullname != self.name:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, 'find_spec'):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _Loader(spec.loader, self)
                    return spec
        return None


class _Loader(Loader):
    """Loads a module by its own loader, and then does what was waiting for it."""

    def __init__(self, loader: Any, watch: _Watch) -> None:
        self.loader, self.watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Returns what the module's own loader makes."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module, which is then as if nobody had watched."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.watch in sys.meta_path:
            sys.meta_path.remove(self.watch)
        for action in self.watch.actions:
            action()
