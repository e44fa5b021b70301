"""A folder of results that belong to one run, so that the run can go on later.

``run.json`` says what the results depend on. Each part of a run has records by name,
which are written whole or not at all and carry a hash of their content.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from mmengine.dist import (
    broadcast_object_list,
    get_dist_info,
    get_rank,
    is_main_process,
)
from mmengine.logging import print_log
from torch import Tensor

from ..errors import ConfigError
from .files import write_atomically
from .packing import is_plain, pack_value, unpack_value

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


class Store:
    """The records of all passes of one evaluation.

    Args:
        folder: where they are kept, so that the evaluation can be interrupted; None
            keeps them in memory.
        run: what all records depend on, see :class:`.RunFolder`.

    Raises:
        ConfigError: if the folder holds records of another run.
    """

    def __init__(self, folder: Path | None, run: dict[str, Any]) -> None:
        self.folder = folder
        self._digest = self._start = ''
        if folder is not None:
            # Tells this start from earlier ones, and keeps the others from looking at
            # the folder while the main process still removes that of the run before.
            start = [uuid.uuid4().hex]
            broadcast_object_list(start)
            self._start = start[0]
            if is_main_process():
                shutil.rmtree(self._outdated, ignore_errors=True)
            opened = RunFolder(folder, run)
            opened.open()
            self._digest = opened.digest

    def part(self, name: str, settings: Any) -> StorePart:
        """The records of a pass, which belong to these settings of it."""
        digest = digest_of([self._digest, name, settings])
        if self.folder is None:
            return StorePart(None, digest)
        # Other settings under the same name are another pass.
        return StorePart(
            self.folder / f'{quote(name, safe="")}-{digest[:10]}', digest, self._start
        )

    def remove(self) -> None:
        """Removes the folder, once the report is complete and every process is done."""
        if self.folder is not None and is_main_process():
            # At one go: a folder of half the records would look like an evaluation
            # that was interrupted.
            try:
                os.replace(self.folder, self._outdated)
                shutil.rmtree(self._outdated)
            except OSError as error:  # the report is complete, which counts
                text = f'{str(self.folder)!r} cannot be removed: {error}'
                print_log(text, logger='current', level=logging.WARNING)

    @property
    def _outdated(self) -> Path:
        assert self.folder is not None
        # Not a name that somebody would give to a folder to keep.
        return self.folder.with_name(f'.{self.folder.name}.removed')


class StorePart:
    """One record for every image of a pass (for a classifier, of every batch).

    Args:
        folder: where files are written; None keeps the records in memory.
        digest: what records must carry to be of this pass.
        start: tells this start of the evaluation from others.
    """

    def __init__(self, folder: Path | None, digest: str, start: str = '') -> None:
        self.folder = folder
        self._digest = digest
        self._start = start
        self._kept: dict[str, dict[str, Any]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(
        self, ids: Sequence[Any], inputs: Sequence[Tensor] | None = None
    ) -> dict[str, Any] | None:
        """Reads the record of these images.

        Args:
            ids: their ids.
            inputs: the images; a record of others, such as those of a file that was
                replaced since, does not count. None takes any.

        Returns:
            None if there is none, or none that is whole and of this pass.
        """
        key = self._key(ids)
        if self.folder is None or key in self._kept:
            return self._kept.get(key)
        try:
            data = (self.folder / f'{key}.record').read_bytes()
            # torch would take over changed numbers without a word.
            if data[:32] != hashlib.sha256(data[32:]).digest():
                return None
            record = torch.load(io.BytesIO(data[32:]), 'cpu', weights_only=True)
            wanted = [self._digest, _as_text(ids)]
            if [record['digest'], record['ids']] != wanted:
                return None
            if inputs is not None and record['inputs'] != digest_of_images(inputs):
                return None
            content: dict[str, Any] = record['content']
            return content
        except Exception:
            return None  # absent, damaged or foreign, and there are many ways to be

    def write(
        self,
        ids: Sequence[Any],
        content: dict[str, Any],
        inputs: Sequence[Tensor] = (),
    ) -> None:
        """Writes a record, whole or not at all."""
        key = self._key(ids)
        if self.folder is None:
            self._kept[key] = content
            return
        if not is_plain(content):
            if not self._kept:
                print_log(
                    'the model predicts something that cannot be kept on disk: an '
                    'interrupted evaluation will have to start anew',
                    logger='current',
                    level=logging.WARNING,
                )
            self._kept[key] = content
            return
        path = self.folder / f'{key}.record'
        # Two processes may have a padded image in common, and on two machines the
        # same number.
        temporary = path.with_suffix(f'.{get_rank()}-{os.getpid()}.tmp')
        record = {
            'digest': self._digest,
            'ids': _as_text(ids),
            'inputs': digest_of_images(inputs),
            'content': content,
        }
        data = io.BytesIO()
        torch.save(record, data)
        digest = hashlib.sha256(data.getbuffer()).digest()
        temporary.write_bytes(digest + data.getbuffer())
        os.replace(temporary, path)

    def wait_for_others(self) -> None:
        """Ends this process's share and waits for the other processes."""
        rank, world_size = get_dist_info()
        if self.folder is None or world_size == 1:
            return
        marks = [self.folder / f'{self._start}-{r}.done' for r in range(world_size)]
        marks[rank].touch()
        wait_until(lambda: all(mark.exists() for mark in marks))

    def shared(self, found: Any) -> Any:
        """What the main process has found, in every process.

        Args:
            found: it, of tensors, numbers and text; what other processes give is
                ignored. It may take the main process long to find it, which a
                collective would not wait for.
        """
        _, world_size = get_dist_info()
        if self.folder is None or world_size == 1:
            message = [found]
            broadcast_object_list(message)
            return message[0]
        # Of this start only: an earlier one may have found something else.
        ids = ['found by the main process', self._start]
        if is_main_process():
            # Packed, since ids may be numpy's numbers.
            self.write(ids, {'found': pack_value(found)})
            return found
        wait_until(lambda: self.read(ids) is not None)
        return unpack_value((self.read(ids) or {})['found'])

    @staticmethod
    def _key(ids: Sequence[Any]) -> str:
        text = quote('|'.join(_as_text(ids)), safe='')
        # File names have at most 255 characters, and an id may be a path.
        return text if len(text) <= 100 else hashlib.sha256(text.encode()).hexdigest()


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


def digest_of_images(images: Sequence[Tensor]) -> str:
    """SHA-256 of images as the data loader gives them."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f'{image.dtype} {tuple(image.shape)}'.encode())
        flat = image.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _as_text(ids: Sequence[Any]) -> list[str]:
    return [str(each) for each in ids]
