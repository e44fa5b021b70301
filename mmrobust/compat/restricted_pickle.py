"""An unpickler that calls nothing but what checkpoints need, for torch before 2.6.

Those versions either run whatever code a file names, or refuse mmengine's checkpoints
as a whole, and their own protection has a hole (CVE-2025-32434). Give this module to
``torch.load`` as ``pickle_module``.
"""

from __future__ import annotations

import pickle
from collections import Counter
from functools import lru_cache
from pickle import UnpicklingError
from typing import Any

import torch

from .checkpoints import safe_globals

__all__ = ['Unpickler', 'UnpicklingError', 'load']


@lru_cache(maxsize=1)
def _allowed() -> dict[str, Any]:
    """What may be named, by the name that files have for it."""
    own = torch._weights_only_unpickler._get_allowed_globals()
    # Newer versions of torch have these on their list, and schedulers need them.
    kinds: tuple[type, ...] = (set, complex, bytearray, Counter)
    plain = {f'{kind.__module__}.{kind.__name__}': kind for kind in kinds}
    return {**own, **plain, **{name: value for value, name in safe_globals()}}


class Unpickler(pickle.Unpickler):
    """Python's unpickler, with a list of what a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        """Looks up what a file names.

        Raises:
            UnpicklingError: if it is not on the list.
        """
        # As pickles of protocol 2 call it.
        module = 'builtins' if module == '__builtin__' else module
        if f'{module}.{name}' not in _allowed():
            raise UnpicklingError(f'weights_only: GLOBAL {module}.{name} is refused')
        return _allowed()[f'{module}.{name}']


def load(file: Any, **settings: Any) -> Any:
    """Reads one pickle, as ``pickle.load`` does."""
    return Unpickler(file, **settings).load()
