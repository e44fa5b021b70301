"""The embedded digits: what is in them, and that making them is safe."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('sklearn')
PIL_Image = pytest.importorskip('PIL.Image')

import torch
from mmrobust.datasets import digits as module
from mmrobust.datasets import digits_root, make_digits
from mmrobust.errors import ConfigError
from mmrobust.registry import DATASETS
from mmdet.evaluation import CocoMetric
from sklearn.datasets import load_digits, load_sample_image

SMALL = {'num_train': 40, 'num_val': 12}
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp('digits') / 'data'
    make_digits(path, **SMALL)
    return path


def annotations(root, split):
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


def image(root, split, name):
    return np.asarray(PIL_Image.open(root / split / name).convert('RGB'), np.float64)


def background(entry):
    x, y, w, h = entry['crop']
    return 0.5 * load_sample_image(entry['photo'])[y : y + h, x : x + w]


def digest(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def build(root, split='val', **kwargs):
    return DATASETS.build(
        dict(
            type='mmrobust.DigitsDataset',
            data_root=root and str(root),
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=f'{split}/'),
            pipeline=PIPELINE,
            test_mode=True,
            **kwargs,
        )
    )


# What is in the data


def test_the_same_settings_give_the_same_bytes(root, tmp_path):
    make_digits(tmp_path / 'again', **SMALL)
    first = digest(root)
    assert len(first) == 40 + 12 + 2 + 1
    assert digest(tmp_path / 'again') == first
    make_digits(tmp_path / 'other', **SMALL, seed=1)
    assert not set(first.values()) & set(digest(tmp_path / 'other').values())


def test_the_splits_share_no_digits_and_no_photograph_pixels(root):
    train, val = annotations(root, 'train'), annotations(root, 'val')
    ids = [{a['digit_id'] for a in split['annotations']} for split in (train, val)]
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]
    seen = np.zeros((2, 2, 427, 640), bool)
    photos = sorted({entry['photo'] for entry in train['images'] + val['images']})
    assert photos == ['china.jpg', 'flower.jpg']
    for index, split in enumerate((train, val)):
        for entry in split['images']:
            x, y, w, h = entry['crop']
            seen[index, photos.index(entry['photo']), y : y + h, x : x + w] = True
    assert seen[0].any()
    assert seen[1].any()
    assert not (seen[0] & seen[1]).any()


def test_the_recorded_digits_and_photographs_are_the_pasted_ones(root):
    data = annotations(root, 'train')
    target = load_digits().target
    for a in data['annotations']:
        assert a['category_id'] == target[a['digit_id']]
        assert min(a['color']) >= 96
    for entry in data['images']:
        untouched = np.ones((128, 128), bool)
        for a in data['annotations']:
            if a['image_id'] == entry['id']:
                (x, y, w, h), margin = a['bbox'], a['side'] // 8 + 2
                left, top = max(x - margin, 0), max(y - margin, 0)
                untouched[top : y + h + margin, left : x + w + margin] = False
        changed = image(root, 'train', entry['file_name']) != np.rint(background(entry))
        assert not changed[untouched].any()
        assert changed[~untouched].any()


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_are_whole_inside_and_hardly_overlap(root, split):
    data = annotations(root, split)
    assert len({a['id'] for a in data['annotations']}) == len(data['annotations'])
    per_image = {entry['id']: [] for entry in data['images']}
    for a in data['annotations']:
        x, y, w, h = a['bbox']
        assert all(isinstance(v, int) for v in a['bbox'])
        assert min(x, y) >= 0
        assert max(x + w, y + h) <= 128
        assert 24 <= a['side'] <= 64
        assert w >= 4
        assert 0.8 * a['side'] <= h <= a['side'] + 2
        per_image[a['image_id']].append(a['bbox'])
    for boxes in per_image.values():
        assert 1 <= len(boxes) <= 4
        for i, (x, y, w, h) in enumerate(boxes):
            for x2, y2, w2, h2 in boxes[:i]:
                inner_w = max(0, min(x + w, x2 + w2) - max(x, x2))
                inner_h = max(0, min(y + h, y2 + h2) - max(y, y2))
                assert inner_w * inner_h <= 0.1 * min(w * h, w2 * h2)


def test_boxes_are_tight_around_the_ink_in_the_image(root):
    data = annotations(root, 'train')
    checked = 0
    for entry in data['images']:
        boxes = [a for a in data['annotations'] if a['image_id'] == entry['id']]
        if len(boxes) > 1:
            continue
        (x, y, w, h), color = boxes[0]['bbox'], boxes[0]['color']
        # image = photograph + opacity * (color - photograph), solved for the opacity
        # in the channel where the two differ most.
        behind = background(entry)
        contrast = np.asarray(color) - behind
        channel = np.abs(contrast).argmax(-1)[..., None]
        change = image(root, 'train', entry['file_name']) - behind
        contrast = np.take_along_axis(contrast, channel, -1)[..., 0]
        change = np.take_along_axis(change, channel, -1)[..., 0]
        known = np.abs(contrast) >= 20
        opacity = np.where(known, change / np.where(known, contrast, 1), np.nan)
        inside = np.zeros((128, 128), bool)
        inside[y : y + h, x : x + w] = True
        assert not (opacity[~inside] > 0.53).any()
        for edge in (
            opacity[y, x : x + w],
            opacity[y + h - 1, x : x + w],
            opacity[y : y + h, x],
            opacity[y : y + h, x + w - 1],
        ):
            assert (edge > 0.47).any() or np.isnan(edge).any()
        checked += 1
    assert checked >= 5


def test_boxes_fit_the_digits_enlarged_by_another_library(root):
    pixels = load_digits().images / 16
    for a in annotations(root, 'train')['annotations']:
        padded = np.pad(pixels[a['digit_id']], 1).astype(np.float32)
        scaled = round(a['side'] * 10 / 8)
        enlarged = PIL_Image.fromarray(padded).resize(
            (scaled, scaled), PIL_Image.Resampling.BICUBIC
        )
        rows, columns = np.nonzero(np.asarray(enlarged) >= 0.5)
        expected = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert np.abs(np.subtract(expected, a['bbox'][2:])).max() <= 2


def test_the_classes_are_equally_frequent(root):
    for split in ('train', 'val'):
        data = annotations(root, split)
        labels = [a['category_id'] for a in data['annotations']]
        counts = np.bincount(labels, minlength=10)
        assert counts.max() - counts.min() <= 1
        assert [c['name'] for c in data['categories']] == list('0123456789')


def test_the_size_scales_the_digits(tmp_path):
    make_digits(tmp_path / 'd', num_train=2, num_val=1, size=192)
    assert image(tmp_path / 'd', 'train', '0000.png').shape == (192, 192, 3)
    sides = [a['side'] for a in annotations(tmp_path / 'd', 'train')['annotations']]
    assert 36 <= min(sides) <= max(sides) <= 96
    with pytest.raises(ConfigError, match='at most 192'):
        make_digits(tmp_path / 'e', num_train=1, num_val=1, size=193)
    assert not (tmp_path / 'e').exists()


# Making the data


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    name = f'digits-v{module.VERSION}'
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('MMROBUST_CACHE', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert Path(digits_root()) == tmp_path / 'home' / '.cache' / 'mmrobust' / name
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert Path(digits_root()) == tmp_path / 'xdg' / 'mmrobust' / name
    monkeypatch.setenv('MMROBUST_CACHE', str(tmp_path / 'own'))
    assert Path(digits_root()) == tmp_path / 'own' / name


def test_a_complete_folder_is_reused(root, monkeypatch):
    monkeypatch.setattr(module, 'write_split', None)  # would raise if called
    make_digits(root, **SMALL)


def test_missing_files_are_put_back(root, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(root, copy)
    (copy / 'train' / '0003.png').unlink()
    (copy / 'annotations' / 'instances_train.json').unlink()
    shutil.rmtree(copy / 'val')
    make_digits(copy, **SMALL)
    assert digest(copy) == digest(root)
    assert list(tmp_path.iterdir()) == [copy]


def test_an_empty_folder_is_filled(root, tmp_path):
    make_digits(tmp_path, **SMALL)
    assert digest(tmp_path) == digest(root)


def test_an_aborted_run_leaves_nothing(tmp_path, monkeypatch):
    write_split = module.write_split

    def abort(building, split, *args):
        write_split(building, split, *args)
        if split == 'val':
            raise KeyboardInterrupt

    monkeypatch.setattr(module, 'write_split', abort)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / 'data', **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_another_process_being_first_is_fine(root, tmp_path, monkeypatch):
    publish = module._publish

    def late(building, target):
        shutil.copytree(root, target)
        publish(building, target)

    monkeypatch.setattr(module, '_publish', late)
    make_digits(tmp_path / 'data', **SMALL)
    assert digest(tmp_path / 'data') == digest(root)
    assert list(tmp_path.iterdir()) == [tmp_path / 'data']


def test_foreign_folders_are_left_alone(root, tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'mine.txt').write_text('mine')
    with pytest.raises(ConfigError, match='was not made by mmrobust'):
        make_digits(tmp_path, **SMALL)
    (tmp_path / 'digits.json').write_text('[]')
    with pytest.raises(ConfigError, match='was not made by mmrobust'):
        build(tmp_path)
    assert (tmp_path / 'train' / 'mine.txt').read_text() == 'mine'
    with pytest.raises(ConfigError, match='other settings'):
        make_digits(root, num_train=3, num_val=2)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / 'file').write_text('')  # permissions would not stop root
    with pytest.raises(ConfigError, match=r'file/x.*MMROBUST_CACHE') as caught:
        make_digits(tmp_path / 'file' / 'x', **SMALL)
    assert '\n' not in str(caught.value)
    with pytest.raises(ConfigError, match='cannot be written'):
        build(tmp_path / 'file' / 'x')


def test_a_missing_scikit_learn_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ConfigError, match=r'pip install mmrobust\[demo\]'):
        make_digits(tmp_path / 'data', **SMALL)
    assert list(tmp_path.iterdir()) == []


# Using the data


def test_the_dataset_makes_its_data(root, tmp_path, monkeypatch):
    def make_small(path):
        make_digits(path, **SMALL)

    monkeypatch.setenv('MMROBUST_CACHE', str(tmp_path))
    monkeypatch.setattr(module, 'make_digits', make_small)
    dataset = build(None, lazy_init=True)
    assert list(tmp_path.iterdir()) == []
    dataset.full_init()
    assert len(dataset) == 12
    assert digest(Path(digits_root())) == digest(root)
    assert dataset.metainfo['classes'] == tuple('0123456789')
    assert len(set(dataset.metainfo['palette'])) == 10


@pytest.mark.parametrize('from_file', [True, False])
def test_perfect_predictions_are_perfect(root, from_file):
    dataset = build(root)
    path = str(root / 'annotations' / 'instances_val.json')
    metric = CocoMetric(ann_file=path if from_file else None, metric='bbox')
    metric.dataset_meta = dataset.metainfo
    boxes = 0
    for item in dataset:
        assert item['inputs'].shape == (3, 128, 128)
        assert item['inputs'].dtype == torch.uint8
        sample = item['data_samples'].to_dict()
        truth = sample['gt_instances']
        sample['pred_instances'] = dict(
            bboxes=truth['bboxes'].tensor,
            labels=truth['labels'],
            scores=torch.ones(len(truth['labels'])),
        )
        boxes += len(truth['labels'])
        metric.process({}, [sample])
    assert boxes == len(annotations(root, 'val')['annotations'])
    assert metric.evaluate(len(dataset))['coco/bbox_mAP'] == 1.0
