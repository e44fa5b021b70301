"""Results on disk, one file per shard, threat and resolution, so that a run resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.files import write_atomically
from ..utils.store import RunFolder, read_json


class ShardStore(RunFolder):
    """A run's shards; each threat and resolution has files of its own.

    A later run may therefore add some.
    """

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
        record = read_json(self.path(resolution, threat, shard))
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
