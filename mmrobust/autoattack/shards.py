"""Results on disk, one file per shard, threat and resolution, so that a run resumes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from ..errors import ConfigError
from ..report import write_atomically

# How long a process waits for the first one to write the run's description.
_PATIENCE = 60.0


class ShardStore:
    """A folder of results that belong to one run.

    Args:
        folder: where ``run.json`` and the shards are.
        run: everything that the results depend on, apart from threat and resolution,
            of which each has files of its own: a later run may add some.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder = folder
        # As it will be read back: tuples become lists, numbers stay.
        self.run = json.loads(json.dumps(run, default=str, sort_keys=True))
        text = json.dumps(self.run, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()

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
            self._wait_until(path.is_file, _PATIENCE)
            if not path.is_file():
                raise ConfigError(
                    f'{str(self.folder)!r} is not the same folder for all processes: '
                    'put the report on a disk that all machines share.'
                )
        before = _read(path)
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

    def path(self, resolution: str, threat: str, shard: int) -> Path:
        """Where the results of a shard are."""
        return self.folder / resolution / threat / f'{shard:06d}.json'

    def read(
        self, resolution: str, threat: str, shard: int, ids: Sequence[str]
    ) -> dict[str, Any] | None:
        """Reads a shard's results.

        Args:
            resolution: name of the resolution.
            threat: name of the ball.
            shard: its number.
            ids: of the images that it must hold.

        Returns:
            None if there are none, or none that is whole and of this run.
        """
        record = _read(self.path(resolution, threat, shard))
        if not isinstance(record, dict) or record.get('run') != self.digest:
            return None
        images = record.get('images')
        if not isinstance(images, list) or [i.get('id') for i in images] != list(ids):
            return None
        return record

    def write(
        self, resolution: str, threat: str, shard: int, record: dict[str, Any]
    ) -> None:
        """Writes a shard's results, whole or not at all."""
        path = self.path(resolution, threat, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({'run': self.digest, **record}, indent=1))

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Waits for the shards of other processes.

        By looking at the folder: a collective would time out after minutes, and shards
        take hours.
        """
        self._wait_until(done, float('inf'))

    @staticmethod
    def _wait_until(done: Callable[[], bool], patience: float) -> None:
        started, pause = time.monotonic(), 0.1
        while not done() and time.monotonic() - started < patience:
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):  # absent, half written, or no JSON
        return None


def _difference(before: Any, now: Any, path: str = '') -> str:
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

    compare(before, now, path)
    return ', '.join(found[:3]) + (', ...' if len(found) > 3 else '')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + '...'
