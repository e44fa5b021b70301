"""Writes files that are there whole or not at all, and hashes files."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def file_sha256(path: str | os.PathLike | None) -> str | None:
    """Hashes a local file; None for a URL or nothing."""
    if not path or not os.path.isfile(path):
        return None
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for chunk in iter(lambda: file.read(1 << 20), b''):
            digest.update(chunk)
    return digest.hexdigest()


def cache_folder() -> str:
    """Returns the folder of what is made once on a machine, which need not exist."""
    cache = os.environ.get('MMROBUST_CACHE')
    if not cache:
        home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
        cache = os.path.join(home, 'mmrobust')
    return os.path.expanduser(cache)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives the name of a temporary file that takes the place of ``path`` at the end.

    For libraries that write files by themselves. The temporary file lies in the same
    folder and has the same ending; it is removed if an error is raised.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f'.{target.name[:100]}.', suffix=target.suffix
    )
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that it is there whole or not at all, after a power cut, too."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def finite(value: Any) -> Any:
    """Makes NaN and infinity null, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if hasattr(value, 'item') and getattr(value, 'ndim', 1) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
