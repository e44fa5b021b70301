"""Reading of mmengine's checkpoints with torch's protection against code left on.

Since torch 2.6, ``torch.load`` refuses every class that it does not know, and
mmengine 0.10.7 does not tell it about its own: a run can't resume what it has saved.
The few classes and functions that such a file holds are declared safe here, so that
files of unknown origin are still read without the power to run code.

Older versions either run whatever code a file names, or refuse mmengine's checkpoints
as a whole, and their own protection has a hole (CVE-2025-32434). For them this module
is a ``pickle_module`` for ``torch.load`` that calls nothing but what checkpoints need.
"""

from __future__ import annotations

import codecs
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pickle import UnpicklingError
from typing import Any

# torch's own switches for trusted files, and against all others.
TRUST = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
NO_TRUST = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'

_STATISTICS = ('current', 'max', 'mean', 'min')


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which the methods of HistoryBuffer are pickled.

    The real one would give a file access to any attribute of anything else it may
    name, and so a way around the protection.

    Args:
        owner: ``mmengine.logging.HistoryBuffer``; all else is refused.
        name: one of its statistics.

    Returns:
        The method.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise UnpicklingError(f"'getattr' of {name!r} is not allowed in a checkpoint.")
    return getattr(HistoryBuffer, name)


def safe_globals() -> list[Any]:
    """Returns what a checkpoint of mmengine's Runner names, with its name there.

    The message hub keeps each logged value's history in arrays, metrics are numpy
    scalars, and numpy pickles both as a function, a type of number and raw bytes.
    Arrays of objects stay refused.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    newer = int(np.__version__.split('.')[0]) >= 2
    core: Any = getattr(np, '_core' if newer else 'core')
    numbers = {type(np.dtype(code)) for code in '?bhilqBHILQefdg'}
    safe = [
        (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_history_method, 'builtins.getattr'),
        # numpy's bytes in pickles of protocol 2.
        (codecs.encode, '_codecs.encode'),
        (np.ndarray, 'numpy.ndarray'),
        (np.dtype, 'numpy.dtype'),
    ]
    safe += [(kind, f'{kind.__module__}.{kind.__qualname__}') for kind in numbers]
    # numpy 2 renamed the module; a file may come from either side of that.
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        safe.append((core.multiarray._reconstruct, f'{module}._reconstruct'))
        safe.append((core.multiarray.scalar, f'{module}.scalar'))
    return safe


def allow_mmengine_checkpoints() -> bool:
    """Lets ``torch.load`` read the checkpoints of mmengine's Runner.

    Only what such files hold is added to torch's list of safe names. Older versions
    of torch, which do not protect by default, need nothing; calling again changes
    nothing.

    Returns:
        True if the names are on torch's list now.
    """
    try:
        import torch

        safe = safe_globals()
    except Exception:  # of a mmengine that is absent, half imported or broken
        return False
    # add_safe_globals came with 2.4, names that differ from the object's own and
    # the protection by default with 2.6.
    if not reads_safely():
        return False
    # Pairs, not bare classes: OneDL's mmengine adds and then removes the bare ones
    # at each load, and would take ours away with its own.
    torch.serialization.add_safe_globals(safe)
    return True


def reads_safely() -> bool:
    """Returns whether torch can read mmengine's checkpoints without running code."""
    import torch

    return tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


def is_on(switch: str) -> bool:
    """Whether one of torch's switches is set."""
    return os.environ.get(switch, '0').lower() in ('1', 'y', 'yes', 'true')


def refuse_code() -> None:
    """Makes every ``torch.load`` of this process refuse code, whoever calls it.

    OneDL's mmengine reads a file that torch refuses once more without protection,
    torch.hub asks for none. Torch before 2.6 could then not read mmengine's checkpoints
    any more, and is left alone, and so are users who have switched the protection off.
    """
    if reads_safely() and not is_on(TRUST):
        os.environ[NO_TRUST] = '1'


@contextmanager
def switched(switch: str, value: bool) -> Iterator[None]:
    """Sets one of torch's switches, and puts it back on exit."""
    before = os.environ.get(switch)
    os.environ[switch] = '1' if value else '0'
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


@lru_cache(maxsize=1)
def _allowed() -> dict[str, Any]:
    """What may be named, by the name that files have for it."""
    import torch

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
