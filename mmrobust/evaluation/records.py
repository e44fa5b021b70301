"""What an evaluation has found out so far, image by image, on disk or in memory."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from mmengine.dist import (
    broadcast_object_list,
    get_dist_info,
    get_rank,
    is_main_process,
)
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from pycocotools import mask as coco_mask
from torch import Tensor

from ..utils.run_folder import RunFolder, digest_of, wait_until

_ELEMENTS = {kind.__name__: kind for kind in (InstanceData, PixelData, LabelData)}
_PLAIN = (str, int, float, bool, type(None))
# Whole numbers from this many on are compressed: maps of classes, a number per pixel.
_MANY = 10_000


class Records:
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

    def of(self, name: str, settings: Any) -> PassRecords:
        """The records of a pass, which belong to these settings of it."""
        digest = digest_of([self._digest, name, settings])
        if self.folder is None:
            return PassRecords(None, digest)
        # Other settings under the same name are another pass.
        return PassRecords(
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


class PassRecords:
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
        if not _is_plain(content):
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
            self.write(ids, {'found': _pack(found)})
            return found
        wait_until(lambda: self.read(ids) is not None)
        return _unpack((self.read(ids) or {})['found'])

    @staticmethod
    def _key(ids: Sequence[Any]) -> str:
        text = quote('|'.join(_as_text(ids)), safe='')
        # File names have at most 255 characters, and an id may be a path.
        return text if len(text) <= 100 else hashlib.sha256(text.encode()).hexdigest()


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


def pack(output: BaseDataElement, sample: BaseDataElement) -> dict[str, Any]:
    """What the model added to a sample, as tensors, numbers and text if possible."""
    fields = set(output.keys()) - set(sample.keys())
    about = set(output.metainfo_keys()) - set(sample.metainfo_keys())
    return {
        'fields': {name: _pack(output.get(name)) for name in sorted(fields)},
        'metainfo': {name: _pack(output.get(name)) for name in sorted(about)},
    }


def unpack(packed: dict[str, Any], sample: BaseDataElement) -> BaseDataElement:
    """The sample with what the model had added to it; the given one stays."""
    output = sample.clone()
    for name, value in packed['fields'].items():
        setattr(output, name, _unpack(value))
    output.set_metainfo({k: _unpack(v) for k, v in packed['metainfo'].items()})
    return output


def _pack(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in 'biuf':
            return {'raw': value}
        return {'array': _pack(torch.from_numpy(np.ascontiguousarray(value)))}
    if isinstance(value, Tensor):
        return _pack_tensor(value.detach())
    if type(value) in _ELEMENTS.values():
        fields = {key: _pack(inner) for key, inner in value.items()}
        return {'element': type(value).__name__, 'fields': fields}
    if type(value) in (list, tuple):
        return type(value)(map(_pack, value))
    if type(value) in _PLAIN:
        return value
    return _pack_boxes(value)


def _pack_tensor(value: Tensor) -> Any:
    if value.dtype == torch.bool and value.dim() == 3:
        return {'masks': _encode(value), 'shape': list(value.shape)}
    # A copy: part of a larger tensor would keep all of it, on disk too.
    value = value.cpu().clone()
    if value.is_floating_point() or value.numel() < _MANY:
        return value
    content = zlib.compress(value.numpy().tobytes(), level=1)
    return {
        'zlib': torch.frombuffer(bytearray(content), dtype=torch.uint8),
        'empty': value.new_empty(0),
        'shape': list(value.shape),
    }


def _pack_boxes(value: Any) -> dict[str, Any]:
    # Not at the top: mmdet may be missing where there are classifiers only.
    try:
        from mmdet.structures.bbox import BaseBoxes, get_box_type
    except ImportError:
        return {'raw': value}
    if not isinstance(value, BaseBoxes):
        return {'raw': value}
    try:
        name, _ = get_box_type(type(value))
    except (KeyError, AssertionError):  # a class that is not registered
        return {'raw': value}
    return {'boxes': value.tensor.detach().cpu().clone(), 'type': name}


def _unpack_boxes(packed: dict[str, Any]) -> Any:
    from mmdet.structures.bbox import get_box_type

    _, kind = get_box_type(packed['type'])
    return kind(packed['boxes'], clone=False)


def _unpack(packed: Any) -> Any:
    if isinstance(packed, (list, tuple)):
        return type(packed)(map(_unpack, packed))
    if not isinstance(packed, dict):
        return packed
    if 'masks' in packed:
        return _decode(packed['masks'], packed['shape'])
    if 'zlib' in packed:
        content = bytearray(zlib.decompress(packed['zlib'].numpy().tobytes()))
        flat = torch.frombuffer(content, dtype=packed['empty'].dtype)
        return flat.reshape(packed['shape'])
    if 'array' in packed:
        return _unpack(packed['array']).numpy()
    if 'boxes' in packed:
        return _unpack_boxes(packed)
    if 'raw' in packed:
        return packed['raw']
    fields = {key: _unpack(inner) for key, inner in packed['fields'].items()}
    return _ELEMENTS[packed['element']](**fields)


def _is_plain(content: Any) -> bool:
    """Whether a record can be read from disk without running foreign code."""
    if isinstance(content, dict):
        return 'raw' not in content and all(map(_is_plain, content.values()))
    return not isinstance(content, (list, tuple)) or all(map(_is_plain, content))


def _encode(masks: Tensor) -> list[dict[str, Any]]:
    """Run lengths, since 100 masks of a picture take 30 MB and more."""
    arrays = masks.detach().cpu().numpy().astype(np.uint8)
    found = [coco_mask.encode(np.asfortranarray(array)) for array in arrays]
    return [
        {'size': list(each['size']), 'counts': each['counts'].decode()}
        for each in found
    ]


def _decode(encoded: list[dict[str, Any]], shape: list[int]) -> Tensor:
    if not encoded:
        return torch.zeros(shape, dtype=torch.bool)
    stacked = np.stack([coco_mask.decode(each) for each in encoded])
    return torch.from_numpy(stacked.astype(bool))
