"""Keeps results of a run on disk, so that it can go on after an interruption.

::

    store = Store(folder, {'seed': 0, 'model': cfg.model})  # refuses another run's
    part = store.part('pgd', attack.describe())
    for ids, images in loader:
        result = part.read(ids, images)
        if result is None:
            result = compute(images)
            part.write(ids, result, images)
    part.wait_for_others()
    store.remove()  # once the report is complete
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
from mmengine.dist import broadcast_object_list, get_dist_info, is_main_process
from mmengine.logging import print_log
from torch import Tensor

from ..errors import ConfigError
from .files import replacing, write_atomically
from .packing import is_plain, pack_value, unpack_value

# Seconds that a process waits for the first one to write the run's description.
_PATIENCE = 60.0


class Store:
    """Keeps the results of one run in one folder, in parts.

    ``run.json`` in the folder says what the results depend on. Every process of a run
    has to make a store at the same time.

    Args:
        folder: where results are kept; None keeps them in memory.
        run: everything that all results depend on; JSON, or turned into text.
        growing: names in ``run`` of dicts to which a later run may add entries, say the
            checkpoints of a study. Entries that both runs have must agree.
        file: name of the description.
        option: of the command line that names the folder, for the messages.

    Attributes:
        digest: SHA-256 of ``run`` without what may grow.

    Raises:
        ConfigError: if the folder holds results of another run, naming what differs.
    """

    def __init__(
        self,
        folder: Path | None,
        run: Mapping[str, Any],
        growing: Sequence[str] = (),
        file: str = 'run.json',
        option: str = '--report',
    ) -> None:
        self.folder = folder
        # As it will be read back: tuples become lists, numbers stay.
        self._run = json.loads(json.dumps(_plain(run), sort_keys=True))
        self.digest = digest_of({k: v for k, v in run.items() if k not in growing})
        self._start = ''
        if folder is None:
            return
        # Tells this start from earlier ones, and keeps the others from looking at the
        # folder while the main process still removes that of the run before.
        start = [uuid.uuid4().hex]
        broadcast_object_list(start)
        self._start = start[0]
        if is_main_process():
            shutil.rmtree(self._outdated, ignore_errors=True)
        self._open(folder / file, growing, option)

    def part(self, name: str, settings: Any) -> StorePart:
        """Returns the results of a part of the run under these settings of it."""
        digest = digest_of([self.digest, name, settings])
        if self.folder is None:
            return StorePart(None, digest)
        # Other settings under the same name are another part.
        place = self.folder / f'{quote(name, safe="")}-{digest[:10]}'
        return StorePart(place, digest, self._start)

    def remove(self) -> None:
        """Removes the folder, once the report is complete and every process is done."""
        if self.folder is not None and is_main_process():
            # At one go: a folder of half the results would look like a run that was
            # interrupted.
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

    def _open(self, path: Path, growing: Sequence[str], option: str) -> None:
        """Writes the description, or checks the one that is there."""
        if is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            wait_until(path.is_file, _PATIENCE)
            if not path.is_file():
                raise ConfigError(
                    f'{str(self.folder)!r} is not the same folder for all processes: '
                    f'let {option} name one on a disk that all machines share.'
                )
        before = read_json(path) if path.is_file() else self._run
        if isinstance(before, dict):
            old, new = dict(before), dict(self._run)
            for name in growing:
                old_entries, new_entries = old.get(name, {}), new[name]
                old[name] = {**new_entries, **old_entries}
                new[name] = {**old_entries, **new_entries}
            found = differences(old, new)
            what = '; '.join(found[:3]) + ('; ...' if len(found) > 3 else '')
        else:
            what = f'its {path.name} cannot be read'
        if what:
            raise ConfigError(
                f'{str(self.folder)!r} holds results of another run: {what}; remove '
                f'the folder to start anew, or give another {option}.'
            )
        if is_main_process() and (new != before or not path.is_file()):
            write_atomically(path, json.dumps(new, indent=2) + '\n')


class StorePart:
    """Keeps one record for every image of a part (for a classifier, every batch).

    A record is written whole or not at all, and carries a hash of its content.

    Args:
        folder: where files are written; None keeps the records in memory.
        digest: what records must carry to be of this part.
        start: tells this start of the run from others.
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
            None if there is none, or none that is whole and of this part.
        """
        key = self._key(ids)
        if self.folder is None or key in self._kept:
            return self._kept.get(key)
        try:
            data = (self.folder / f'{key}.record').read_bytes()
        except FileNotFoundError:
            return None
        # torch would take over changed numbers without a word.
        if data[:32] != hashlib.sha256(data[32:]).digest():
            return None
        record = torch.load(io.BytesIO(data[32:]), 'cpu', weights_only=True)
        if [record['digest'], record['ids']] != [self._digest, _as_text(ids)]:
            return None
        if inputs is not None and record['inputs'] != digest_of_images(inputs):
            return None
        content: dict[str, Any] = record['content']
        return content

    def write(
        self, ids: Sequence[Any], content: dict[str, Any], inputs: Sequence[Tensor] = ()
    ) -> None:
        """Writes a record: tensors, numbers and text, in dicts, lists and tuples.

        Content that holds something else is kept in memory, and said so once.
        """
        key = self._key(ids)
        if self.folder is None or not is_plain(content):
            if self.folder is not None and not self._kept:
                text = (
                    'the model predicts something that cannot be kept on disk: an '
                    'interrupted evaluation will have to start anew'
                )
                print_log(text, logger='current', level=logging.WARNING)
            self._kept[key] = content
            return
        record = {
            'digest': self._digest,
            'ids': _as_text(ids),
            'inputs': digest_of_images(inputs),
            'content': content,
        }
        data = io.BytesIO()
        torch.save(record, data)
        digest = hashlib.sha256(data.getbuffer()).digest()
        # Not write_atomically: a power cut that damages a record costs one image.
        with replacing(self.folder / f'{key}.record') as temporary:
            temporary.write_bytes(digest + data.getbuffer())

    def wait_for_others(self) -> None:
        """Ends this process's share and waits for the other processes."""
        rank, world_size = get_dist_info()
        if self.folder is None or world_size == 1:
            return
        marks = [self.folder / f'{self._start}-{r}.done' for r in range(world_size)]
        marks[rank].touch()
        wait_until(lambda: all(mark.exists() for mark in marks))

    def shared(self, found: Any) -> Any:
        """Returns in every process what the main one has found.

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
    """Hashes something that JSON can hold, or that is turned into text."""
    text = json.dumps(_plain(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, name: str = '') -> list[str]:
    """Says what has changed between two descriptions, a clause for each setting.

    Like ``'model.layers[1] was 2 and is 3'``, or ``'norm was not set and is "l2"'``.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in dict.fromkeys([*old, *new]):
            inner = f'{name}.{key}' if name else str(key)
            if key not in new:
                found.append(f'{inner} was {_short(old[key])} and is not set')
            elif key not in old:
                found.append(f'{inner} was not set and is {_short(new[key])}')
            else:
                found += differences(old[key], new[key], inner)
        return found
    lists = isinstance(old, (list, tuple)) and isinstance(new, (list, tuple))
    if lists and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [
            text for i, pair in pairs for text in differences(*pair, f'{name}[{i}]')
        ]
    return [] if old == new else [f'{name} was {_short(old)} and is {_short(new)}']


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
    """Reads a JSON file; None if it is absent, half written, or no JSON."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """Makes configs JSON, the same in every process: they hold classes and more."""
    if isinstance(value, Mapping):
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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + '...'


def digest_of_images(images: Sequence[Tensor]) -> str:
    """Hashes the type, shape and values of images."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f'{image.dtype} {tuple(image.shape)}'.encode())
        flat = image.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _as_text(ids: Sequence[Any]) -> list[str]:
    return [str(each) for each in ids]
