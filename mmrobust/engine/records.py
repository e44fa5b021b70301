"""What an evaluation has found out so far, image by image, on disk or in memory."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from mmengine.dist import get_dist_info, is_main_process
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from pycocotools import mask as coco_mask
from torch import Tensor

from ..run_folder import RunFolder, digest_of, wait_until

_ELEMENTS = {kind.__name__: kind for kind in (InstanceData, PixelData, LabelData)}
_PLAIN = (str, int, float, bool, type(None))


class Records:
    """The records of all passes of one evaluation.

    Args:
        folder: where they are kept, so that the evaluation can be interrupted; None
            keeps them in memory.
        run: what all records depend on, see :class:`mmrobust.run_folder.RunFolder`.

    Raises:
        ConfigError: if the folder holds records of another run.
    """

    def __init__(self, folder: Path | None, run: dict[str, Any]) -> None:
        self.folder = folder
        self._digest = ''
        if folder is not None:
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
            self.folder / f'{quote(name, safe="")}-{digest[:10]}', digest
        )

    def remove(self) -> None:
        """Removes the folder, once the report is complete and every process is done."""
        if self.folder is not None and is_main_process():
            # At one go: a folder of half the records would look like an evaluation
            # that was interrupted.
            os.replace(self.folder, self._outdated)
            shutil.rmtree(self._outdated, ignore_errors=True)

    @property
    def _outdated(self) -> Path:
        assert self.folder is not None
        return self.folder.with_name(f'{self.folder.name}.old')


class PassRecords:
    """One record for every image of a pass (for a classifier, of every batch).

    Args:
        folder: where files are written; None keeps the records in memory.
        digest: what records must carry to be of this pass.
    """

    def __init__(self, folder: Path | None, digest: str) -> None:
        self.folder = folder
        self._digest = digest
        self._kept: dict[str, dict[str, Any]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, ids: Sequence[Any]) -> dict[str, Any] | None:
        """Reads the record of these images.

        Returns:
            None if there is none, or none that is whole and of this pass.
        """
        key = self._key(ids)
        if self.folder is None or key in self._kept:
            return self._kept.get(key)
        try:
            record = torch.load(
                self.folder / f'{key}.pth', map_location='cpu', weights_only=True
            )
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            return None  # absent or damaged
        if record.get('digest') != self._digest or record['ids'] != _as_text(ids):
            return None
        content: dict[str, Any] = record['content']
        return content

    def write(self, ids: Sequence[Any], content: dict[str, Any]) -> None:
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
        path = self.folder / f'{key}.pth'
        temporary = path.with_suffix(f'.{os.getpid()}.tmp')
        record = {'digest': self._digest, 'ids': _as_text(ids), 'content': content}
        torch.save(record, temporary)
        os.replace(temporary, path)

    def wait_for_others(self) -> None:
        """Ends this process's share and waits for the other processes."""
        rank, world_size = get_dist_info()
        if self.folder is None or world_size == 1:
            return
        marks = [self.folder / f'done-{r}-of-{world_size}' for r in range(world_size)]
        marks[rank].touch()
        wait_until(lambda: all(mark.exists() for mark in marks))

    @staticmethod
    def _key(ids: Sequence[Any]) -> str:
        text = quote('|'.join(_as_text(ids)), safe='')
        # File names have at most 255 characters, and an id may be a path.
        return text if len(text) <= 100 else hashlib.sha256(text.encode()).hexdigest()


def _as_text(ids: Sequence[Any]) -> list[str]:
    return [str(each) for each in ids]


def pack(output: BaseDataElement, sample: BaseDataElement) -> dict[str, Any]:
    """What the model added to a sample, as tensors, numbers and text if possible."""
    added = set(output.keys()) - set(sample.keys())
    return {name: _pack(output.get(name)) for name in sorted(added)}


def unpack(packed: dict[str, Any], sample: BaseDataElement) -> BaseDataElement:
    """The sample with what the model had added to it; the given one stays."""
    output = sample.clone()
    for name, value in packed.items():
        setattr(output, name, _unpack(value))
    return output


def _pack(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.dtype == torch.bool and value.dim() == 3:
            return {'masks': _encode(value), 'shape': list(value.shape)}
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return {'array': torch.from_numpy(value)}
    if type(value) in _ELEMENTS.values():
        fields = {key: _pack(inner) for key, inner in value.items()}
        return {'element': type(value).__name__, 'fields': fields}
    if isinstance(value, (list, tuple)):
        return [_pack(inner) for inner in value]
    if isinstance(value, _PLAIN):
        return value
    return _pack_boxes(value)


def _pack_boxes(value: Any) -> dict[str, Any]:
    # Not at the top: mmdet may be missing where there are classifiers only.
    from mmdet.structures.bbox import BaseBoxes, get_box_type

    if isinstance(value, BaseBoxes):
        name, _ = get_box_type(type(value))
        return {'boxes': value.tensor.detach().cpu(), 'type': name}
    return {'raw': value}


def _unpack_boxes(packed: dict[str, Any]) -> Any:
    from mmdet.structures.bbox import get_box_type

    _, kind = get_box_type(packed['type'])
    return kind(packed['boxes'], clone=False)


def _unpack(packed: Any) -> Any:
    if isinstance(packed, list):
        return [_unpack(inner) for inner in packed]
    if not isinstance(packed, dict):
        return packed
    if 'masks' in packed:
        return _decode(packed['masks'], packed['shape'])
    if 'array' in packed:
        return packed['array'].numpy()
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
    return not isinstance(content, list) or all(map(_is_plain, content))


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
