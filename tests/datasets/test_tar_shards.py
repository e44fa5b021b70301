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
    shards = TarShardsDataset(data_root=str(folder), split='train', pipeline=LOAD)
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
    first = TarShardsDataset(data_root=str(folder), split='train').get_data_info(0)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, 'open', None)
        again = TarShardsDataset(data_root=str(folder), split='train').get_data_info(0)
    assert again == first
    # Not where it is another one by now, whatever the note beside it says.
    path = folder / 'set-train-0.tar'
    note = json.loads((folder / 'set-train-0.tar.index.json').read_text())
    note['samples'][0][1] += 512
    (folder / 'set-train-0.tar.index.json').write_text(json.dumps(note))
    assert (
        TarShardsDataset(data_root=str(folder), split='train').get_data_info(0) != first
    )
    os.utime(path, ns=(0, 0))
    assert (
        TarShardsDataset(data_root=str(folder), split='train').get_data_info(0) == first
    )
    # Nor where it is none, or an older one.
    good = (folder / 'set-train-0.tar.index.json').read_text()
    note = json.loads(good)
    for content in (
        [],
        {**note, 'version': 1, 'samples': []},
        {key: value for key, value in note.items() if key != 'version'},
        {**note, 'samples': None},
    ):
        (folder / 'set-train-0.tar.index.json').write_text(json.dumps(content))
        TarShardsDataset(data_root=str(folder), split='train')
        assert (folder / 'set-train-0.tar.index.json').read_text() == good


def test_mistakes_end_with_a_sentence(folder):
    with pytest.raises(ConfigError, match='no pictures'):
        TarShardsDataset(data_root=str(folder), split='train')
    as_webdataset(folder)
    dataset = TarShardsDataset(data_root=str(folder), split='train')
    last = dataset.get_data_info(8)['img_path']
    path = folder / 'set-train-1.tar'
    content = path.read_bytes()
    path.write_bytes(content[:2000])
    with pytest.raises(ConfigError, match=r'train-1\.tar is cut off'):
        get(last)
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ConfigError, match='uncompressed'):
        TarShardsDataset(data_root=str(folder), split='train')
    with tarfile.open(path, 'w') as tar:
        add(tar, 'without.jpg', b'')
    with pytest.raises(ConfigError, match=r'only some have a \.cls'):
        TarShardsDataset(data_root=str(folder), split='train')
    with tarfile.open(path, 'w') as tar:
        add(tar, 'a.jpg', b'')
        add(tar, 'a.cls', b'cat')
    with pytest.raises(ConfigError, match=r'numbers in its \.cls'):
        TarShardsDataset(data_root=str(folder), split='train')


def write_tar(folder, *members, name='a.tar'):
    """Members are (name, content), or a TarInfo of what is no file."""
    # Written within a tick of the clock, two could look the same.
    (folder / f'{name}.index.json').unlink(missing_ok=True)
    with tarfile.open(folder / name, 'w') as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                add(tar, *member)


def special(name, kind, target=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def listed(folder, split='a', **settings):
    """Names in the shards and labels."""
    dataset = TarShardsDataset(data_root=str(folder), split=split, **settings)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return {info['img_path'].split('/')[-1]: info['gt_label'] for info in infos}


def test_the_split_is_that_of_the_config(tmp_path):
    """ImageNet's configs name it as split, others (CIFAR-10's) as data_prefix."""
    root = tmp_path / 'with[brackets]'
    root.mkdir()
    for split in ('train', 'test'):
        write_tar(root, (f'c/{split}.jpg', b''), name=f'{split}.tar')
    assert listed(root, 'train') == {'train.jpg': 0}
    assert listed(root, '', data_prefix='test/') == {'test.jpg': 0}
    assert listed(root, shards='te*', data_prefix='') == {'test.jpg': 0}
    for settings in (
        dict(split='train', data_prefix='test'),
        dict(split='', data_prefix='images/test'),
        dict(data_prefix=dict(img_path='test')),
        dict(ann_file='meta/train.txt'),
    ):
        with pytest.raises(ConfigError, match='mean nothing for shards'):
            listed(root, **settings)
    with pytest.raises(ConfigError, match='which shards'):
        TarShardsDataset(data_root=str(root))


def test_what_is_no_picture_is_left_out(tmp_path):
    (tmp_path / 'a-folder.tar').mkdir()
    write_tar(
        tmp_path,
        ('c0/x.jpg', b''),
        ('c0/._x.jpg', b''),
        special('c1.jpg', tarfile.DIRTYPE),
        special('c1.cls', tarfile.DIRTYPE),
        ('c1.jpg/y.jpg', b''),
    )
    assert listed(tmp_path) == {'x.jpg': 0, 'y.jpg': 1}
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        write_tar(tmp_path, ('c0/x.jpg', b''), special('c0/y.jpg', kind, 'c0/x.jpg'))
        with pytest.raises(ConfigError, match=r'c0/y\.jpg in .* is a link'):
            listed(tmp_path)


def test_of_a_name_that_comes_twice_the_last_counts(tmp_path):
    write_tar(
        tmp_path, ('x.jpg', b'1'), ('x.cls', b'1'), ('x.jpg', b'2'), ('x.cls', b'2')
    )
    assert listed(tmp_path) == {'x.jpg': 2}
    dataset = TarShardsDataset(data_root=str(tmp_path), split='a')
    assert get(dataset.get_data_info(0)['img_path']) == b'2'


def test_two_pictures_of_one_label_are_refused(tmp_path):
    for other in ('x.png', 'x.seg.png'):
        write_tar(tmp_path, ('x.jpg', b''), (other, b''), ('x.cls', b'3'))
        with pytest.raises(ConfigError, match='one of 2 pictures'):
            listed(tmp_path)
    write_tar(tmp_path, ('c/x.jpg', b''), ('c/x.png', b''))  # as in a folder
    assert listed(tmp_path) == {'x.jpg': 0, 'x.png': 0}


def test_the_uppermost_folder_is_the_class(tmp_path):
    names = ('c0/x.jpg', 'c0/s/y.jpg', 'c2/s/z.jpg')
    for above in ('', './', 'data/train/'):
        write_tar(tmp_path, *((above + name, b'') for name in names))
        assert listed(tmp_path) == {'x.jpg': 0, 'y.jpg': 0, 'z.jpg': 1}
    with pytest.raises(ConfigError, match='in 2 folders, but classes names 3'):
        listed(tmp_path, classes=['c0', 'c1', 'c2'])
    write_tar(tmp_path, *((name, b'') for name in ('x.jpg', *names)))
    with pytest.raises(ConfigError, match='nor a folder of their class'):
        listed(tmp_path)
    write_tar(tmp_path, ('only/x.jpg', b''))
    assert listed(tmp_path, classes=['only']) == {'x.jpg': 0}


def test_labels_are_within_the_classes(tmp_path):
    for label in (b'-1', b'7'):
        write_tar(tmp_path, ('x.jpg', b''), ('x.cls', label))
        with pytest.raises(ConfigError, match=rf'\.cls member .* is {int(label)}'):
            listed(tmp_path, classes=['c0', 'c1', 'c2'])
    assert listed(tmp_path) == {'x.jpg': 7}
