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
from contextlib import suppress
from glob import glob
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
    does it. What a shard holds is noted beside it in ``SHARD.tar.index.json`` if that
    can be written, since finding out takes a pass over the shard.

    Args:
        data_root: folder of the shards.
        split: takes the files ``*SPLIT*.tar`` of the folder.
        shards: another pattern for their names.
        **kwargs: as for mmpretrain's ``BaseDataset`` (``pipeline``, ``classes``, ...).

    Raises:
        ConfigError: if there is no shard, one is compressed or damaged, or pictures
            with labels mix with others.
    """

    def __init__(
        self,
        data_root: str = '',
        split: str = 'train',
        shards: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.shards = f'*{split}*.tar' if shards is None else shards
        super().__init__(ann_file='', data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists the pictures of all shards, in the shards' order."""
        pattern = os.path.join(self.data_root, self.shards)
        samples = [
            (shard, *sample)
            for shard in sorted(glob(pattern))
            for sample in _samples(shard)
        ]
        if not samples:
            raise ConfigError(
                f'no pictures in {pattern}: set data_root and shards of the dataset.'
            )
        labels = [label for *_, label in samples]
        if None in labels:
            folders = [os.path.dirname(name) for _, name, *_ in samples]
            if any(label is not None for label in labels) or '' in folders:
                raise ConfigError(
                    f'some pictures in {pattern} have neither a .cls member nor a '
                    'folder, or only some have a .cls: add the labels.'
                )
            numbers = {name: i for i, name in enumerate(sorted({*folders}))}
            labels = [numbers[folder] for folder in folders]
        return [
            {'img_path': f'{_PREFIX}{shard}#{offset}+{size}/{name}', 'gt_label': label}
            for (shard, name, offset, size, _), label in zip(
                samples, labels, strict=True
            )
        ]


def _samples(shard: str) -> list[list]:
    """Lists a shard's pictures: name, offset, size, label or None."""
    status = os.stat(shard)
    state = [status.st_size, status.st_mtime_ns]
    index = f'{shard}.index.json'
    try:
        with open(index, encoding='utf-8') as file:
            known = json.load(file)
        if known['shard'] == state:
            return known['samples']
    except (OSError, ValueError, KeyError):
        pass
    samples: list[list] = []
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, 'r:') as tar:
            for member in tar:
                folder, base = os.path.split(os.path.normpath(member.name))
                key = os.path.join(folder, base.split('.')[0])
                if base.lower().endswith(ImageNet.IMG_EXTENSIONS):
                    name = os.path.join(folder, base)
                    samples.append([key, name, member.offset_data, member.size])
                elif base == f'{os.path.basename(key)}.cls':
                    content: Any = tar.extractfile(member)
                    labels[key] = int(content.read())
    except (tarfile.TarError, ValueError) as error:
        raise ConfigError(
            f'{shard} is no complete, uncompressed tar file with numbers in its .cls '
            f'members ({error}): fetch it again, or unpack and pack it.'
        ) from error
    found = [[*place, labels.get(key)] for key, *place in samples]
    with suppress(OSError):  # in a folder that only others write
        write_atomically(index, json.dumps({'shard': state, 'samples': found}))
    return found
