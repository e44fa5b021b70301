"""Classification sets in tar files, such as WebDataset's, read in any order.

A million small files are slow to copy, list and open; some hundred tar files are not.
The package webdataset reads such shards as a stream, whose place and shuffle buffer no
checkpoint can hold. Here each picture is read by its offset, so that the set has a
length and indices like any other: samplers, shuffling, several processes and exact
resume stay what they are.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from contextlib import suppress
from glob import escape, glob
from typing import Any

from mmengine.fileio import BaseStorageBackend, register_backend
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.imagenet import ImageNet

from ..errors import ConfigError
from ..registry import DATASETS
from ..utils.files import write_atomically

_PREFIX = 'tar://'
# The shard, offset and size in bytes, and the member's name, which only people read.
_PLACE = re.compile(r'(?:tar://)?(.+?)#(\d+)\+(\d+)/')
_INDEX = '.index.json'
# Raise it with every change of what is listed: notes of other versions are not used.
_VERSION = 2


class TarBackend(BaseStorageBackend):
    """Reads ``tar://SHARD.tar#OFFSET+SIZE/NAME``, which needs no other setting.

    mmengine chooses it by the prefix, for ``LoadImageFromFile`` as it is in any
    pipeline. Each read opens the shard, so worker processes share nothing.
    """

    def get(self, filepath: Any) -> bytes:
        """Returns the bytes of a member.

        Raises:
            ConfigError: if the shard ends before them.
        """
        found = _PLACE.match(str(filepath))
        if found is None:
            raise ConfigError(f'{filepath} is no tar://SHARD.tar#OFFSET+SIZE/NAME.')
        shard, offset, size = found[1], int(found[2]), int(found[3])
        with open(shard, 'rb', buffering=0) as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise ConfigError(f'{shard} is cut off: fetch it again.')
        return content

    def get_text(self, filepath: Any, encoding: str = 'utf-8') -> str:
        """Returns a member as text."""
        return self.get(filepath).decode(encoding)


register_backend('tar', TarBackend, prefixes='tar')


@DATASETS.register_module()
class TarShardsDataset(BaseDataset):
    """Pictures and labels in uncompressed tar files, in mmpretrain's form.

    A member ``KEY.jpg`` (or another kind of picture) has the label that the member
    ``KEY.cls`` of its shard holds as text, as in WebDataset's sets. Where there is no
    such member, its folder is its class, numbered in alphabetical order as mmpretrain
    does it: the uppermost folder, below those that all pictures of the set are in. What
    a shard holds is noted beside it in ``SHARD.tar.index.json`` if that can be written,
    since finding out takes a pass over the shard.

    Args:
        data_root: folder of the shards.
        split: takes the files ``*SPLIT*.tar`` of the folder.
        shards: another pattern for their names, in place of ``split``.
        data_prefix: the split, in configs that choose their sets by a folder's name.
        ann_file: nothing; labels are in the shards.
        **kwargs: as for mmpretrain's ``BaseDataset`` (``pipeline``, ``classes``, ...).

    Raises:
        ConfigError: if nothing says which shards, there is none, one is compressed or
            damaged, pictures with labels mix with others or share one, a picture is a
            link, or labels or folders are none of ``classes``.
    """

    def __init__(
        self,
        data_root: str = '',
        split: str = '',
        shards: str | None = None,
        data_prefix: Any = '',
        ann_file: str = '',
        **kwargs: Any,
    ) -> None:
        data_prefix = data_prefix or ''
        prefix = data_prefix.strip('./') if isinstance(data_prefix, str) else '/'
        if ann_file or '/' in prefix or (split and prefix not in ('', split)):
            raise ConfigError(
                f'ann_file={ann_file!r} and data_prefix={data_prefix!r} mean nothing '
                'for shards, but that a data_prefix without a split is the split: set '
                'them to "", and split or shards instead.'
            )
        if shards is None and not (split or prefix):
            raise ConfigError(
                'which shards? Set split of the dataset to a part of their names, or '
                'shards to a pattern for them.'
            )
        self.shards = f'*{escape(split or prefix)}*.tar' if shards is None else shards
        super().__init__(ann_file='', data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists the pictures of all shards, in the shards' order."""
        samples = [
            (shard, *sample) for shard in self._paths() for sample in _samples(shard)
        ]
        if not samples:
            raise ConfigError(
                f'no pictures in {self._pattern}: set data_root and shards of the '
                'dataset.'
            )
        labels = [label for *_, label in samples]
        if None in labels:
            if any(label is not None for label in labels):
                raise ConfigError(
                    f'some pictures in {self._pattern} have neither a .cls member nor '
                    'a folder, or only some have a .cls: add the labels.'
                )
            labels = self._labels_of_folders([name for _, name, *_ in samples])
        most = len(self.CLASSES) if self.CLASSES else float('inf')
        wrong = [label for label in labels if not 0 <= label < most]
        if wrong:
            raise ConfigError(
                f'a .cls member in {self._pattern} is {wrong[0]}: labels begin at 0 '
                'and stay below the number of classes.'
            )
        return [
            {'img_path': f'{_PREFIX}{shard}#{offset}+{size}/{name}', 'gt_label': label}
            for (shard, name, offset, size, _), label in zip(
                samples, labels, strict=True
            )
        ]

    def count_noted(self) -> int | None:
        """Counts the pictures by the notes beside the shards; None if one lacks them.

        Nothing is written, and no shard looked through.
        """
        total = 0
        for shard in self._paths():
            noted = _noted(shard)
            if noted is None:
                return None
            total += len(noted)
        return total or None

    @property
    def _pattern(self) -> str:
        return os.path.join(escape(self.data_root), self.shards)

    def _paths(self) -> list[str]:
        paths = sorted(filter(os.path.isfile, glob(self._pattern)))
        return [path for path in paths if not path.endswith(_INDEX)]

    def _labels_of_folders(self, names: list[str]) -> list[int]:
        shared = os.path.commonpath(map(os.path.dirname, names))
        folders = [name.split('/')[:-1] for name in names]
        depth = len(shared.split('/')) if shared else 0
        if depth and all(len(folder) == depth for folder in folders):
            depth -= 1  # a single class
        if any(len(folder) <= depth for folder in folders):
            raise ConfigError(
                f'some pictures in {self._pattern} have neither a .cls member nor a '
                'folder of their class: add the labels.'
            )
        classes = sorted({folder[depth] for folder in folders})
        if self.CLASSES and len(self.CLASSES) != len(classes):
            raise ConfigError(
                f'the pictures in {self._pattern} lie in {len(classes)} folders, but '
                f'classes names {len(self.CLASSES)}: is a shard missing?'
            )
        numbers = {name: number for number, name in enumerate(classes)}
        return [numbers[folder[depth]] for folder in folders]


def _state(shard: str) -> list[int]:
    status = os.stat(shard)
    return [status.st_size, status.st_mtime_ns]


def _noted(shard: str) -> list[list] | None:
    """Reads the samples noted beside a shard, unless it is another one by now."""
    try:
        with open(shard + _INDEX, encoding='utf-8') as file:
            known = json.load(file)
        if (known['version'], known['shard']) == (_VERSION, _state(shard)):
            return known['samples']
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _samples(shard: str) -> list[list]:
    """Lists a shard's pictures: name, offset, size, label or None."""
    noted = _noted(shard)
    if noted is not None:
        return noted
    state = _state(shard)
    places: dict[str, tuple[int, int]] = {}  # of two with a name tar keeps the last
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, 'r:') as tar:
            for member in tar:
                name = os.path.normpath(member.name).lstrip('/')
                base = os.path.basename(name)
                picture = base.lower().endswith(ImageNet.IMG_EXTENSIONS)
                labelled = base == f'{os.path.basename(_key(name))}.cls'
                # macOS puts ._NAME beside NAME.
                if member.isdir() or base[:2] == '._' or not (picture or labelled):
                    continue
                if not member.isfile() or member.issparse():
                    raise ConfigError(
                        f'{member.name} in {shard} is a link or no plain file: pack '
                        'the files themselves (tar --dereference --hard-dereference).'
                    )
                if picture:
                    places[name] = member.offset_data, member.size
                else:
                    content: Any = tar.extractfile(member)
                    labels[_key(name)] = int(content.read())
    except ConfigError:
        raise
    except (tarfile.TarError, ValueError) as error:
        raise ConfigError(
            f'{shard} is no complete, uncompressed tar file with numbers in its .cls '
            f'members ({error}): fetch it again, or unpack and pack it.'
        ) from error
    of_keys = Counter(map(_key, places))
    for name in places:
        if of_keys[_key(name)] > 1 and _key(name) in labels:
            raise ConfigError(
                f'{name} in {shard} is one of {of_keys[_key(name)]} pictures with one '
                '.cls: leave out masks and the like.'
            )
    found = [[name, *place, labels.get(_key(name))] for name, place in places.items()]
    with suppress(OSError):  # in a folder that only others write
        content = {'version': _VERSION, 'shard': state, 'samples': found}
        write_atomically(shard + _INDEX, json.dumps(content))
    return found


def _key(name: str) -> str:
    """What the members of a sample share, as the package webdataset takes it."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.split('.')[0])
