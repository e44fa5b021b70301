"""The digits as a classification set, against the detection set they come from."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmrobust.datasets import CropBox, DigitCropsDataset, make_digits
from mmrobust.errors import ConfigError

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrobust.CropBox'),
    dict(type='Resize', scale=(48, 48)),
    dict(type='PackInputs'),
]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(folder, num_train=12, num_val=6)
    return folder


@pytest.mark.parametrize('split', ['train', 'val'])
def test_every_digit_is_one_picture_with_its_label(root, split):
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(
        dict(
            type='mmrobust.DigitCropsDataset',
            split=split,
            data_root=str(root),
            pipeline=PIPELINE,
        )
    )
    content = json.loads((root / 'annotations' / f'instances_{split}.json').read_text())
    assert len(dataset) == len(content['annotations']) > 6
    counted = Counter(a['category_id'] for a in content['annotations'])
    assert Counter(dataset.get_gt_labels().tolist()) == counted
    assert list(dataset.CLASSES) == list('0123456789')
    sample = dataset[3]
    assert sample['inputs'].shape == (3, 48, 48)
    annotation = content['annotations'][3]
    assert int(sample['data_samples'].gt_label) == annotation['category_id']
    # The digit's colour fills the pixels where it is opaque, in BGR.
    colour = np.array(annotation['color'][::-1])
    distance = np.abs(sample['inputs'].numpy() - colour[:, None, None]).sum(0)
    assert (distance < 30).mean() > 0.1


def test_an_unknown_split_is_refused(root):
    with pytest.raises(ConfigError, match="'test' is unknown"):
        DigitCropsDataset(split='test', data_root=str(root))


def test_a_crop_is_a_square_around_the_box():
    image = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)[..., None].repeat(3, 2)
    results = CropBox(context=1.5)(
        dict(img=image, crop_box=[20, 10, 28, 14], img_shape=(40, 60))
    )
    # Side 1.5 * 8 = 12 around the centre (24, 12): columns 18-30, rows 6-18.
    assert np.array_equal(results['img'], image[6:18, 18:30])
    assert results['img_shape'] == (12, 12)


def test_beyond_the_border_the_border_is_repeated():
    image = cv2.randu(np.zeros((16, 16, 3), np.uint8), 0, 255)
    crop = TRANSFORMS.build(dict(type='mmrobust.CropBox', context=1))(
        dict(img=image, crop_box=[-4, 0, 4, 8])
    )['img']
    assert crop.shape == (8, 8, 3)
    assert np.array_equal(crop[:, 4:], image[:8, :4])
    assert (crop[:, :4] == image[:8, :1]).all()


def test_a_context_below_one_is_refused():
    with pytest.raises(ConfigError, match='at least 1'):
        CropBox(context=0.5)
