"""Pictures and labels of tar shards are those of the same files, in any process."""

import gzip
import io
import json
import os
import tarfile

import cv2
import numpy as np
import pytest
from mmengine.fileio import get
from mmrobust.datasets.tar_shards import TarShardsDataset
from mmrobust.errors import ConfigError
from mmpretrain.datasets import CustomDataset
from torch.utils.data import DataLoader

LOAD = [dict(type='LoadImageFromFile')]


@pytest.fixture
def folder(tmp_path):
    """Nine pictures of three classes, as files."""
    rng = np.random.default_rng(0)
    for index in range(9):
        path = tmp_path / 'loose' / f'c{index % 3}' / f'{index}.JPEG'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (8 + index, 10, 3), dtype=np.uint8)
        path.write_bytes(cv2.imencode('.jpg', picture)[1].tobytes())
    return tmp_path


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def as_folders(folder):
    """Packed as the folders are, some in one tar file, some in another."""
    paths = sorted((folder / 'loose').rglob('*.JPEG'))
    for number, part in enumerate((paths[:4], paths[4:])):
        with tarfile.open(folder / f'set-train-{number}.tar', 'w') as tar:
            for path in part:
                tar.add(path, f'./{path.relative_to(folder / "loose")}')


def as_webdataset(folder):
    """Packed as WebDataset's samples, the label before or after its picture."""
    paths = sorted((folder / 'loose').rglob('*.JPEG'))
    for number, part in enumerate((paths[:4], paths[4:])):
        with tarfile.open(folder / f'set-train-{number}.tar', 'w') as tar:
            for index, path in enumerate(part):
                members = [
                    (f'{path.stem}.JPEG', path.read_bytes()),
                    (f'{path.stem}.cls', path.parent.name[1:].encode()),
                    (f'{path.stem}.json', b'{}'),
                ]
                for member in members[:: 1 if index % 2 else -1]:
                    add(tar, *member)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('pack', [as_folders, as_webdataset])
def test_pictures_and_labels_are_those_of_the_files(folder, pack, workers):
    pack(folder)
    loose = CustomDataset(data_root=str(folder), data_prefix='loose', pipeline=LOAD)
    shards = TarShardsDataset(data_root=str(folder), pipeline=LOAD)
    # In another order, from any process.
    loader = DataLoader(
        shards,
        sampler=range(8, -1, -1),
        batch_size=2,
        num_workers=workers,
        collate_fn=lambda items: items,
    )
    found = [item for batch in loader for item in batch][::-1]
    assert len(found) == len(loose) == 9
    for one, other in zip(found, loose, strict=True):
        assert one['gt_label'] == other['gt_label']
        assert np.array_equal(one['img'], other['img'])
        assert os.path.basename(one['img_path']) == os.path.basename(other['img_path'])


def test_a_shard_is_looked_through_once(folder, monkeypatch):
    as_folders(folder)
    first = TarShardsDataset(data_root=str(folder)).get_data_info(0)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, 'open', None)
        again = TarShardsDataset(data_root=str(folder)).get_data_info(0)
    assert again == first
    # Not where it is another one by now, whatever the note beside it says.
    path = folder / 'set-train-0.tar'
    note = json.loads((folder / 'set-train-0.tar.index.json').read_text())
    note['samples'][0][1] += 512
    (folder / 'set-train-0.tar.index.json').write_text(json.dumps(note))
    assert TarShardsDataset(data_root=str(folder)).get_data_info(0) != first
    os.utime(path)
    assert TarShardsDataset(data_root=str(folder)).get_data_info(0) == first


def test_mistakes_end_with_a_sentence(folder):
    with pytest.raises(ConfigError, match='no pictures'):
        TarShardsDataset(data_root=str(folder))
    as_webdataset(folder)
    dataset = TarShardsDataset(data_root=str(folder))
    last = dataset.get_data_info(8)['img_path']
    path = folder / 'set-train-1.tar'
    content = path.read_bytes()
    path.write_bytes(content[:2000])
    with pytest.raises(ConfigError, match=r'train-1\.tar is cut off'):
        get(last)
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ConfigError, match='uncompressed'):
        TarShardsDataset(data_root=str(folder))
    with tarfile.open(path, 'w') as tar:
        add(tar, 'without.jpg', b'')
    with pytest.raises(ConfigError, match=r'only some have a \.cls'):
        TarShardsDataset(data_root=str(folder))
    with tarfile.open(path, 'w') as tar:
        add(tar, 'a.jpg', b'')
        add(tar, 'a.cls', b'cat')
    with pytest.raises(ConfigError, match=r'numbers in its \.cls'):
        TarShardsDataset(data_root=str(folder))
