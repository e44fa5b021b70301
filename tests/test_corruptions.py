"""Corruptions of pictures: closed forms and statistics of the package, and datasets."""

import sys
from importlib import import_module
from types import ModuleType

import corrupting
import cv2
import numpy as np
import pytest
import tiny
import torch
from mmdet.registry import DATASETS
from mmengine.structures import BaseDataElement
from mmrobust.corruptions import BENCHMARK, GROUPS, NAMES, Corruption, corrupted_dataset
from mmrobust.errors import ConfigError
from mmrobust.frame import FRAME, FramedDataset
from mmrobust.region import REGION
from mmrobust.utils.seeding import derive_seed

SIDE = 96


@pytest.fixture(scope='module')
def real():
    """The package itself, which the extra ``corruptions`` brings."""
    pytest.importorskip('imagecorruptions')


@pytest.fixture
def stand_in(monkeypatch):
    corrupting.put_in_place(monkeypatch)


def grey(value, side=SIDE):
    return np.full((side, side, 3), value, np.uint8)


def natural(side=SIDE):
    """Smooth, with colours and an edge."""
    rng = np.random.default_rng(3)
    small = rng.uniform(20, 230, (6, 6, 3)).astype(np.float32)
    picture = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    picture[side // 3 : side // 2, side // 4 :] = (10, 200, 90)
    return picture.clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------- against mathematics


def test_contrast_and_brightness_are_their_formulas(real):
    picture = natural()
    for severity, factor in enumerate((0.4, 0.3, 0.2, 0.1, 0.05), 1):
        mean = picture.mean((0, 1))
        expected = np.floor((picture - mean) * factor + mean)
        found = Corruption('contrast', severity)(picture, 0)
        assert np.abs(found - expected).max() <= 1  # of floats next to a whole number
    for severity, more in enumerate((0.1, 0.2, 0.3, 0.4, 0.5), 1):
        found = Corruption('brightness', severity)(grey(100), 0)
        assert found == pytest.approx(np.floor(100 + 255 * more), abs=1)
        # The largest channel rises by so much, and the others in proportion.
        colour = Corruption('brightness', severity)(grey(1) * np.uint8([40, 80, 20]), 0)
        top = min(80 + 255 * more, 255)
        assert colour[0, 0] == pytest.approx(np.array([0.5, 1, 0.25]) * top, abs=1.01)


def test_pixelate_is_the_mean_of_blocks(real):
    picture = natural()
    blocks = picture.reshape(SIDE // 4, 4, SIDE // 4, 4, 3).mean((1, 3))
    found = Corruption('pixelate', 5)(picture, 0)  # a quarter of either side
    assert np.abs(found - blocks.repeat(4, 0).repeat(4, 1)).max() <= 1


def test_the_colours_are_not_exchanged(real):
    """Mud is (63, 42, 20) in RGB, and pictures are BGR."""
    found = Corruption('spatter', 5)(grey(0, 128), 0)
    mud = found[found[..., 2] > 55]
    assert len(mud)
    assert mud.mean(0) == pytest.approx([20, 42, 63], rel=0.12)


def test_noise_has_the_published_size(real):
    """Of grey 128, so that hardly anything is cut off."""
    picture, share = grey(128, 128), 128 / 255
    sizes = {
        'gaussian_noise': (0.08, 0.12),
        'shot_noise': (np.sqrt(share / 60), np.sqrt(share / 25)),
        'speckle_noise': (share * 0.15, share * 0.2),
    }
    for name, deviations in sizes.items():
        for severity, deviation in enumerate(deviations, 1):
            found = Corruption(name, severity)(picture, 1).astype(float)
            assert found.mean() == pytest.approx(127.5, abs=1)
            assert found.std() == pytest.approx(255 * deviation, rel=0.03)
    for severity, amount in enumerate((0.03, 0.06, 0.09, 0.17, 0.27), 1):
        found = Corruption('impulse_noise', severity)(picture, 1)
        black, white = (found == 0).mean(), (found == 255).mean()
        assert (black, white) == pytest.approx((amount / 2, amount / 2), rel=0.1)
        assert np.isin(found, (0, 127, 128, 255)).all()


@pytest.mark.parametrize('name', GROUPS['blur'])
def test_blurs_keep_what_is_even_and_blur_the_rest(real, name, monkeypatch):
    functions = import_module('imagecorruptions.corruptions')
    compiled = functions._shuffle_pixels_njit_glass_blur
    # Compiling takes longer than all of these tests.
    monkeypatch.setattr(functions, compiled.__name__, compiled.py_func)
    assert np.abs(Corruption(name, 3)(grey(90), 0).astype(int) - 90).max() <= 1
    picture = natural()
    found = Corruption(name, 3)(picture, 0)
    steps = [
        np.abs(np.diff(each.astype(int), axis=0)).max() for each in (picture, found)
    ]
    assert steps[1] < 0.8 * steps[0]


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'glass_blur'])
def test_draws_follow_from_the_seed_alone_and_severity_counts(real, name):
    picture = natural()
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    weak, strong = (Corruption(name, severity)(picture, 1) for severity in (1, 5))
    assert np.array_equal(Corruption(name, 1)(picture, 1), weak)
    assert (np.random.get_state()[1] == before).all()
    assert weak.shape == picture.shape
    assert weak.dtype == np.uint8
    far = [np.abs(each.astype(int) - picture).mean() for each in (weak, strong)]
    # Frost puts ice in the place of the picture, saturation first falls and then rises.
    assert 0 < far[0] < (np.inf if name in ('frost', 'saturate') else far[1])


# -------------------------------------------------------------------------- mistakes


def test_names_and_severities(stand_in):
    assert len(BENCHMARK) == 15
    assert len(NAMES) == 19
    with pytest.raises(ConfigError, match=r"'fogg' is unknown .did you mean 'fog'"):
        Corruption('fogg', 1)
    for severity in (0, 6, 1.5, True, '3'):
        with pytest.raises(ConfigError, match=r'choose from 1 .weak. to 5'):
            Corruption('fog', severity)


def test_pictures_that_cannot_be_corrupted(stand_in):
    fog = Corruption('fog', 1)
    with pytest.raises(
        ConfigError, match='at least 32 x 32 pixels, and one has 40 x 31'
    ):
        fog(np.zeros((31, 40, 3), np.uint8), 0)
    with pytest.raises(ConfigError, match='colour pictures of 8 bits'):
        fog(np.zeros((40, 40), np.uint8), 0)


def test_small_pictures_are_found_before_any_is_loaded(stand_in, coco):
    dataset = dataset_of(coco)
    info = {'width': 90, 'height': 24}
    dataset.get_data_info = lambda _: info
    with pytest.raises(ConfigError, match='and one has 90 x 24'):
        corrupted_dataset(dataset, Corruption('fog', 1), seed=0)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'imagecorruptions', None)
    with pytest.raises(ConfigError, match=r'pip install .imagecorruptions-imaug'):
        Corruption('fog', 1)
    old = ModuleType('imagecorruptions')
    old.corruption_dict = {'glass_blur': lambda x, severity=1: x}
    monkeypatch.setitem(sys.modules, 'imagecorruptions', old)
    with pytest.raises(ConfigError, match='uninstall imagecorruptions'):
        Corruption('fog', 1)


# -------------------------------------------------------------------------- datasets


def dataset_of(coco, pad=False):
    config = tiny.loader(coco, test=True, scale=(112, 84))['dataset']
    if pad:
        padding = dict(type='Pad', size=(128, 128), pad_val=dict(img=(114, 114, 114)))
        config['pipeline'].insert(2, padding)
    return DATASETS.build(config)


def test_a_corrupted_dataset_is_that_of_corrupted_files(stand_in, coco, tmp_path):
    """Of files that were corrupted and written beforehand."""
    dataset, fog = dataset_of(coco), Corruption('fog', 2)
    twin = corrupted_dataset(dataset, fog, seed=4)
    before = dataset[0]['inputs'].clone()
    for index in range(len(dataset)):
        found, clean = twin[index], dataset[index]
        info = dataset.get_data_info(index)
        info['img_path'] = str(tmp_path / f'{index}.png')
        picture = cv2.imread(clean['data_samples'].img_path)
        seed = derive_seed(4, info['img_id'], 'corruption')
        cv2.imwrite(info['img_path'], fog(picture, seed))
        from_file = dataset.pipeline(info)
        assert torch.equal(found['inputs'], from_file['inputs'])
        assert not torch.equal(found['inputs'], clean['inputs'])
        boxes = [each['data_samples'].gt_instances.bboxes for each in (found, clean)]
        assert torch.equal(boxes[0].tensor, boxes[1].tensor)
    assert torch.equal(dataset[0]['inputs'], before)


def test_padding_and_frames_are_those_of_the_clean_pictures(stand_in, coco):
    dataset = dataset_of(coco, pad=True)
    twin = corrupted_dataset(dataset, Corruption('fog', 3), seed=0)
    for index in range(len(dataset)):
        clean, found = (FramedDataset(each)[index] for each in (dataset, twin))
        samples: list[BaseDataElement] = [
            each['data_samples'] for each in (clean, found)
        ]
        assert torch.equal(*(each.get(REGION) for each in samples))
        assert samples[0].get(FRAME) == samples[1].get(FRAME)
        outside = ~samples[0].get(REGION)[0]
        assert outside.any()
        assert (found['inputs'][:, outside] == 114).all()


def test_wrapped_datasets(stand_in, coco):
    inner = tiny.loader(coco, test=True)['dataset']
    wrapped = DATASETS.build(dict(type='ConcatDataset', datasets=[inner, inner]))
    twin = corrupted_dataset(wrapped, Corruption('snow', 3), seed=0)
    plain = corrupted_dataset(DATASETS.build(inner), Corruption('snow', 3), seed=0)
    assert torch.equal(twin[7]['inputs'], plain[1]['inputs'])


def test_a_pipeline_that_loads_no_picture(stand_in, coco):
    dataset = dataset_of(coco)
    dataset.pipeline.transforms = dataset.pipeline.transforms[1:]
    with pytest.raises(ConfigError, match='add LoadImageFromFile'):
        corrupted_dataset(dataset, Corruption('fog', 3), seed=0)
