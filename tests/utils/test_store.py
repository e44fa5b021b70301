"""Store: what was predicted comes back, and nothing else is taken for it."""

import hashlib
import io
import json
import logging
import pickle
import random

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmrobust.utils import store as module
from mmrobust.errors import ConfigError
from mmrobust.utils.files import replacing, write_atomically
from mmrobust.utils.packing import pack, unpack
from mmrobust.utils.store import Store, digest_of


class Strange:
    """What no record file can hold."""


def detector_sample():
    """What the data loader gives."""
    sample = DetDataSample(
        metainfo=dict(img_id=7, ori_shape=(40, 60), scale_factor=(2.0, 2.0))
    )
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.rand(2, 4)), labels=torch.tensor([0, 2])
    )
    return sample


def instances(count, masks):
    generator = torch.Generator().manual_seed(count)
    found = InstanceData(
        bboxes=torch.randn(count, 4, generator=generator),
        scores=torch.rand(count, generator=generator),
        labels=torch.randint(0, 3, (count,), generator=generator),
    )
    if masks:
        found.masks = torch.rand(count, 40, 60, generator=generator) > 0.5
    return found


def boxes(sample):
    sample.pred_instances = instances(3, masks=False)


def typed_boxes(sample):
    sample.pred_instances = InstanceData(bboxes=HorizontalBoxes(torch.rand(3, 4)))


def half(sample):
    sample.pred_instances = InstanceData(scores=torch.rand(3).half())


def masks(sample):
    sample.pred_instances = instances(4, masks=True)


def no_masks(sample):
    sample.pred_instances = instances(0, masks=True)


def panoptic(sample):
    # Larger than what is stored as it is; ids of panoptic segments are large.
    found = torch.arange(120 * 160).reshape(1, 120, 160) // 777 * 1000 + 3
    sample.pred_panoptic_seg = PixelData(sem_seg=found)
    sample.pred_sem_seg = PixelData(sem_seg=torch.randint(0, 3, (1, 40, 60)))


def as_numpy(sample):
    rng = np.random.default_rng(0)
    sample.pred_instances = InstanceData(
        scores=rng.random(3),
        labels=rng.integers(0, 9, 3),
        # Neither of the two is contiguous.
        bboxes=rng.random((4, 3)).T,
        masks=rng.random((3, 8, 5))[::-1] > 0.5,
        names=['disc', 'square', 'stripe'],
    )


def numbers(sample):
    """Which other frameworks add; np.float64 is a float to isinstance."""
    sample.set_field(np.float64(0.25), 'quality')
    sample.set_field(np.int64(3), 'count')
    sample.set_field([0.5, None, 'text', True, (1, 2)], 'notes')


def label(sample):
    # Also writes into the metainfo.
    sample.set_pred_label(torch.tensor([3])).set_pred_score(torch.rand(5))


KINDS = {
    **{
        kind.__name__: (detector_sample, kind)
        for kind in (boxes, typed_boxes, half, masks, no_masks, panoptic, as_numpy)
    },
    'numbers': (detector_sample, numbers),
    'label': (
        lambda: DataSample(metainfo=dict(sample_idx=4)).set_gt_label(torch.tensor([1])),
        label,
    ),
}


def assert_same(found, expected):
    """The same types, shapes and numbers, all the way down."""
    if isinstance(expected, BaseDataElement):
        assert type(found) is type(expected)
        assert found.metainfo == expected.metainfo
        assert set(found.keys()) == set(expected.keys())
        for key, value in expected.items():
            assert_same(found.get(key), value)
    elif isinstance(expected, BaseBoxes):
        assert type(found) is type(expected)
        assert_same(found.tensor, expected.tensor)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


def store(folder, **run):
    return Store(folder / 'r.records', run).part('pgd', {'eps': 4})


@pytest.mark.parametrize('kind', list(KINDS))
def test_what_was_predicted_comes_back(tmp_path, kind):
    make, predict = KINDS[kind]
    torch.manual_seed(0)
    output = make()
    sample = output.clone()
    predict(output)
    before = set(sample.keys())
    kept, packed = store(tmp_path), pack(output, sample)
    # What the loader gave is in no record.
    assert not {'gt_instances', 'gt_label'} & set(packed['fields'])
    kept.write([7], packed)
    assert len(list(tmp_path.rglob('*.record'))) == 1
    # By another process, as it were.
    found = store(tmp_path).read([7])
    assert found is not None
    assert_same(unpack(found, sample), output)
    assert set(sample.keys()) == before


def test_records_are_small(tmp_path):
    """Masks and maps take little; a part of a tensor does not drag in the whole."""
    sample = detector_sample()
    output = sample.clone()
    many = torch.rand(100_000, 4)
    found = torch.zeros(50, 400, 600, dtype=torch.bool)
    found[:, 100:200, 50:] = True
    output.pred_instances = InstanceData(bboxes=many[:50], masks=found)
    output.pred_sem_seg = PixelData(
        sem_seg=torch.full((1, 400, 600), 7, dtype=torch.long)
    )
    store(tmp_path).write([7], pack(output, sample))
    (path,) = tmp_path.rglob('*.record')
    # 12 MB of masks, 1.9 MB of map, 1.6 MB of boxes.
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize('content', [Strange(), np.array(['a', 'b']), {'a': 1}])
def test_what_cannot_be_kept_on_disk_is_kept_in_memory(tmp_path, content, monkeypatch):
    said = []
    monkeypatch.setattr(
        module, 'print_log', lambda text, level=None, **_: said.append((text, level))
    )
    output = detector_sample()
    sample = output.clone()
    output.set_field(content, 'strange')
    kept = store(tmp_path)
    for number in (1, 2):
        kept.write([number], pack(output, sample))
    found = kept.read([2])
    assert found is not None
    assert unpack(found, sample).get('strange') is content
    assert not list(tmp_path.rglob('*.record'))
    assert store(tmp_path).read([2]) is None
    ((text, level),) = said  # once, not for every image
    assert 'will have to start anew' in text
    assert level == logging.WARNING


def test_without_a_folder_records_last_as_long_as_the_pass(tmp_path):
    records = Store(None, {})
    kept = records.part('pgd', {})
    kept.write([1], {'a': 1})
    assert kept.read([1]) == {'a': 1}
    assert records.part('pgd', {}).read([1]) is None
    kept.wait_for_others()
    records.remove()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------- files that are not records


def test_a_damaged_record_is_none_at_all(tmp_path):
    """Cut anywhere, or with a byte changed: never other numbers."""
    content = {'scores': torch.rand(200), 'text': 'abc'}
    store(tmp_path).write([7], content)
    (path,) = tmp_path.rglob('*.record')
    good, kept = path.read_bytes(), store(tmp_path)
    assert kept.read([7]) is not None
    rng = random.Random(0)
    for end in [0, 1, 2, len(good) - 1, *(rng.randrange(len(good)) for _ in range(40))]:
        path.write_bytes(good[:end])
        assert kept.read([7]) is None, end
    for _ in range(200):
        place = rng.randrange(len(good))
        changed = bytearray(good)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(changed))
        assert kept.read([7]) is None, place
    path.write_bytes(good)
    assert kept.read([7]) is not None


def write(path, content):
    """A file that is whole."""
    data = io.BytesIO()
    torch.save(content, data)
    path.write_bytes(hashlib.sha256(data.getvalue()).digest() + data.getvalue())


def test_a_record_runs_no_foreign_code(tmp_path):
    kept = store(tmp_path)
    kept.write([7], {'a': 1})
    (path,) = tmp_path.rglob('*.record')
    record = torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)
    write(path, {**record, 'content': {'a': 2}})
    assert kept.read([7]) == {'a': 2}
    write(path, {**record, 'content': {'a': Strange()}})
    with pytest.raises(pickle.UnpicklingError):
        kept.read([7])


# -------------------------------------------------------------- which record is whose


def test_records_of_other_settings_are_not_used(tmp_path):
    records = Store(tmp_path / 'r.records', {'seed': 0})
    first = records.part('pgd', {'eps': 4})
    first.write([7], {'a': 1})
    assert records.part('pgd', {'eps': 4}).read([7]) == {'a': 1}
    for other in (records.part('pgd', {'eps': 8}), records.part('cls', {'eps': 4})):
        assert other.read([7]) is None
        # Not even if the file were put into the place.
        (path,) = first.folder.glob('*.record')
        (other.folder / path.name).write_bytes(path.read_bytes())
        assert other.read([7]) is None
    # The order of an ensemble's members is a setting, too.
    ab = records.part('e', [['a', {}], ['b', {}]])
    ab.write([7], {'a': 1})
    assert records.part('e', [['b', {}], ['a', {}]]).read([7]) is None


def test_a_record_is_of_these_ids_and_these_images(tmp_path):
    kept = store(tmp_path)
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    kept.write([7], {'a': 1}, [image])
    assert kept.read([7]) == kept.read([7], [image.clone()]) == {'a': 1}
    assert kept.read([7], image[None]) == {'a': 1}  # a stacked batch
    assert kept.read([8]) is None
    other = image.clone()
    other[0, 0, 0] ^= 1
    for changed in (other, image.float(), image.reshape(3, 5, 4)):
        assert kept.read([7], [changed]) is None
    (path,) = tmp_path.rglob('7.record')
    (path.parent / '8.record').write_bytes(path.read_bytes())
    assert kept.read([8]) is None


def test_ids_may_be_any_text(tmp_path):
    """Paths (WIDER FACE), and longer than a file name may be."""
    kept = store(tmp_path)
    ids = ['a/b', 'a_b', 'a%2Fb', '../../x', '..', '.', 7, '', 'x' * 99, 'é' * 90]
    ids += ['y' * 3000 + str(number) for number in range(3)]
    for number, each in enumerate(ids):
        kept.write([each], {'number': number})
    for number, each in enumerate(ids):
        assert kept.read([each]) == {'number': number}, each
    files = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert {path.parent for path in files} == {kept.folder, tmp_path / 'r.records'}
    assert len(files) == len(ids) + 1
    # A batch of a classifier has one record for all its images.
    kept.write(list(range(500)), {'number': -1})
    assert kept.read(list(range(500))) == {'number': -1}
    assert kept.read(list(range(499))) is None
    # So may the names of attacks.
    records, names = Store(tmp_path / 'named', {}), ('a/b', '..', 'pgd-eps4_255', 'ü')
    for name in names:
        records.part(name, {}).write([1], {'name': name})
    for name in names:
        assert records.part(name, {}).read([1]) == {'name': name}
    assert {path.name for path in tmp_path.iterdir()} == {'r.records', 'named'}


# --------------------------------------------------------------------- the folder


def test_a_folder_of_another_run_is_refused(tmp_path):
    run = {'seed': 0, 'model': {'layers': [1, 2], 'type': 'FCOS'}, 'eps': 0.1}
    Store(tmp_path / 'r.records', run)
    Store(tmp_path / 'r.records', run)
    other = {**run, 'seed': 1, 'model': {'layers': [1, 3], 'type': 'FCOS'}}
    with pytest.raises(ConfigError) as caught:
        Store(tmp_path / 'r.records', other)
    text = str(caught.value)
    assert 'model.layers[1] was 2 and is 3; seed was 0 and is 1; remove' in text
    assert 'eps' not in text
    assert 'remove the folder' in text
    (tmp_path / 'r.records' / 'run.json').write_text('{"seed"')
    with pytest.raises(ConfigError, match=r'its run\.json cannot be read'):
        Store(tmp_path / 'r.records', run)


def test_a_run_may_grow(tmp_path):
    """By entries of what is named, and by nothing else."""

    def opened(**run):
        return Store(tmp_path / 'r', run, ['files'], 'sweep.json', '--work-dir')

    first = opened(files={'a': '1'}, seed=0)
    second = opened(files={'b': '2'}, seed=0)
    assert first.digest == second.digest
    known = json.loads((tmp_path / 'r' / 'sweep.json').read_text())
    assert known == {'files': {'a': '1', 'b': '2'}, 'seed': 0}
    for run, words in (
        (dict(files={'b': '3', 'c': '1'}, seed=0), "files.b was '2' and is '3'"),
        (dict(files={'b': '2'}, seed=1), 'seed was 0 and is 1'),
        (dict(files={'b': '2'}), 'seed was 0 and is not set'),
    ):
        with pytest.raises(ConfigError, match=f'{words}; .* another --work-dir'):
            opened(**run)
    assert json.loads((tmp_path / 'r' / 'sweep.json').read_text()) == known


def test_removing_leaves_nothing_and_keeps_what_others_made(tmp_path):
    kept = tmp_path / 'r.records.old'  # a user may put records aside
    kept.mkdir()
    leftover = tmp_path / '.r.records.removed'  # killed while it was removed
    (leftover / 'pgd').mkdir(parents=True)
    records = Store(tmp_path / 'r.records', {})
    assert not leftover.exists()
    records.part('pgd', {}).write([1], {'a': 1})
    records.remove()
    assert list(tmp_path.iterdir()) == [kept]


def test_a_run_is_the_same_in_every_process(tmp_path):
    """Configs hold classes, functions, objects and keys that are no text."""

    def run():
        return {
            'type': DetDataSample,
            'function': boxes,
            'object': Strange(),
            'missing': float('nan'),
            'names': {0: 'disc', 'a': 'b', None: (1, 2)},
        }

    Store(tmp_path / 'r', run())
    Store(tmp_path / 'r', run())
    assert digest_of(run()) == digest_of(run())
    other = run()
    other['function'] = masks
    with pytest.raises(ConfigError, match=r'function was .*boxes.* and is .*masks'):
        Store(tmp_path / 'r', other)


def test_what_one_process_found_reaches_the_others(tmp_path, monkeypatch):
    """Also with numpy's numbers as ids, which cannot be read back from disk."""
    found = [(np.int64(7), 'apgd'), ('a/b.png', 'benign')]
    records = Store(tmp_path / 'r.records', {}).part('ensemble', {})
    monkeypatch.setattr(module, 'get_dist_info', lambda: (0, 2))
    assert records.shared(found) == found
    monkeypatch.setattr(module, 'is_main_process', lambda: False)
    assert records.shared(None) == [(7, 'apgd'), ('a/b.png', 'benign')]


# -------------------------------------------------------------------------- files


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'a.npz'
    write_atomically(path, 'text ü')
    assert path.read_text(encoding='utf-8') == 'text ü'
    write_atomically(path, b'\0bytes')

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text('half')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b'\0bytes'
    with replacing(path) as temporary:
        np.savez(temporary, a=np.ones(3))
    assert np.load(path)['a'].tolist() == [1, 1, 1]
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
