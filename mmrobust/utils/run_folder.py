"""A folder of results that all belong to one run, so that the run can go on later."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from ..errors import ConfigError
from .files import write_atomically

# How long a process waits for the first one to write the run's description.
_PATIENCE = 60.0


class RunFolder:
    """A folder whose ``run.json`` says what its results depend on.

    Args:
        folder: where ``run.json`` and the results are.
        run: everything that the results depend on; JSON, or turned into text.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder = folder
        # As it will be read back: tuples become lists, numbers stay.
        self.run = json.loads(json.dumps(_plain(run), sort_keys=True))
        self.digest = digest_of(self.run)

    def open(self) -> None:
        """Makes the folder, or checks that it belongs to this run.

        Raises:
            ConfigError: if its results are of another run, naming what differs.
        """
        path = self.folder / 'run.json'
        if is_main_process():
            if not path.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps(self.run, indent=2))
        else:
            wait_until(path.is_file, _PATIENCE)
            if not path.is_file():
                raise ConfigError(
                    f'{str(self.folder)!r} is not the same folder for all processes: '
                    'put the report on a disk that all machines share.'
                )
        before = read_json(path)
        if before != self.run:
            what = (
                _difference(before, self.run)
                if isinstance(before, dict)
                else 'its run.json cannot be read'
            )
            raise ConfigError(
                f'{str(self.folder)!r} holds results of another run: {what}; remove '
                'the folder to start anew, or give another --report.'
            )


def digest_of(content: Any) -> str:
    """SHA-256 of something that JSON can hold, or that is turned into text."""
    text = json.dumps(_plain(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def wait_until(done: Callable[[], bool], patience: float = float('inf')) -> None:
    """Waits for what other processes write, for at most ``patience`` seconds.

    By looking at the disk: a collective would time out after minutes, and the others
    may need hours.
    """
    started, pause = time.monotonic(), 0.1
    while not done() and time.monotonic() - started < patience:
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def read_json(path: Path) -> Any:
    """A JSON file's content, or None if it is absent, half written, or no JSON."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """What JSON can hold, the same in every process: configs hold classes and more."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if hasattr(value, '__qualname__'):
        return f'{value.__module__}.{value.__qualname__}'
    return re.sub(r' at 0x[0-9a-f]+', '', str(value))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What has changed between two flat descriptions, a sentence for each name."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            found.append(f'{name} was {old[name]!r} and is not set')
        elif name not in old:
            found.append(f'{name} was not set and is {new[name]!r}')
        elif old[name] != new[name]:
            found.append(f'{name} was {old[name]!r} and is {new[name]!r}')
    return found


def _difference(before: Any, now: Any) -> str:
    """Names the first few settings that differ, like ``seed (0 before, now 1)``."""
    found: list[str] = []

    def compare(old: Any, new: Any, where: str) -> None:
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted({*old, *new}):
                compare(old.get(key), new.get(key), f'{where}.{key}' if where else key)
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for index, pair in enumerate(zip(old, new, strict=True)):
                compare(*pair, f'{where}[{index}]')
        elif old != new:
            found.append(f'{where} ({_short(old)} before, now {_short(new)})')

    compare(before, now, '')
    return ', '.join(found[:3]) + (', ...' if len(found) > 3 else '')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + '...'
