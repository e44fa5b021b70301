"""Which pixels depend on the picture, whatever a pipeline is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
import tiny
import torch
from mmdet.registry import DATASETS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmrobust.frame import attack_samples
from mmrobust.region import REGION, MeasuredDataset, region_of, restored
from mmrobust.utils.seeding import seeded
from test_probing import BOXES, CACHED, LOAD, MOSAIC, PACK
from torch import Tensor
from torch.utils.data import DataLoader

RESIZE = dict(type='Resize', scale=(100, 80), keep_ratio=True)
FLIP = dict(type='RandomFlip', prob=0.5)
CROP = dict(type='RandomCrop', crop_size=(60, 60), allow_negative_crop=True)
GREY = dict(img=(114.0, 114.0, 114.0))


@TRANSFORMS.register_module()
class CentredLetterbox:
    """Pads on all sides, as mmyolo's LetterResize does, and says so to nobody."""

    def __call__(self, results: dict) -> dict:
        picture = results['img']
        results['img'] = cv2.copyMakeBorder(
            picture, 5, 9, 7, 3, cv2.BORDER_CONSTANT, value=(114, 114, 114)
        )
        results['img_shape'] = results['img'].shape[:2]
        return results


# Whether a family's pipeline pads, and its steps between annotations and packing.
FAMILIES: dict[str, tuple[bool, list[dict]]] = {
    'resized': (False, [RESIZE, FLIP]),
    'cropped': (False, [CROP, FLIP]),
    'yolox': (True, [RESIZE, dict(type='Pad', pad_to_square=True, pad_val=GREY)]),
    'rtmdet': (True, [RESIZE, dict(type='Pad', size=(112, 120), pad_val=GREY)]),
    'centred': (True, [RESIZE, dict(type='CentredLetterbox')]),
    'ssd': (True, [dict(type='Expand', mean=[114] * 3, ratio_range=(1.2, 3)), FLIP]),
    'cut out': (
        True,
        [dict(type='CutOut', n_holes=3, cutout_shape=(9, 9), fill_in=(114, 114, 114))],
    ),
    'rotated': (True, [dict(type='Rotate', prob=1.0, level=6, img_border_value=114)]),
    'cached mosaic': (True, CACHED[2:-1]),
}
YOLOX = [step for step in MOSAIC if step['type'] != 'YOLOXHSVRandomAug']


@pytest.fixture(scope='module')
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without a value of 114, from which padding can be told by looking."""
    root = tiny.make_coco(tmp_path_factory.mktemp('bright'), num_images=5)
    for path in (root / 'images').iterdir():
        picture = cv2.imread(str(path))
        cv2.imwrite(str(path), 180 + picture // 4)
    return root


def built(root: Path, steps: list[dict]) -> Any:
    config = tiny.dataset(root, True)
    return DATASETS.build({**config, 'pipeline': [LOAD, BOXES, *steps, PACK]})


def mosaics(root: Path) -> Any:
    inner = {**tiny.dataset(root, True), 'pipeline': [LOAD, BOXES]}
    wrapper = dict(type='MultiImageMixDataset', dataset=inner, pipeline=YOLOX)
    return DATASETS.build(wrapper)


def picture(image: Tensor) -> Tensor:
    return (image != 114).any(0, keepdim=True)


@pytest.mark.parametrize('family', [*FAMILIES, 'mosaic'])
def test_padding_is_what_does_not_depend_on_the_picture(family, bright):
    if family == 'mosaic':
        pads, make = True, lambda: mosaics(bright)
    else:
        pads, steps = FAMILIES[family]
        make = lambda: built(bright, steps)  # noqa: E731
    alone, measured = make(), MeasuredDataset(make())
    padded = 0
    for seed in range(14):
        with seeded(seed, torch.device('cpu')):
            expected = alone[seed % 4]
        with seeded(seed, torch.device('cpu')):
            item = measured[seed % 4]
        image, region = item['inputs'], region_of(item['data_samples'])
        # Measuring changes nothing of it.
        assert torch.equal(image, expected['inputs'])
        if region is None:
            assert picture(image).all()
            continue
        padded += 1
        assert region.shape == (1, *image.shape[1:])
        assert torch.equal(region, picture(image))
    assert measured.reason is None
    assert padded >= 2 if pads else not padded


def test_the_loader_hands_regions_over(bright):
    dataset = built(bright, FAMILIES['centred'][1])
    dataset.__getitems__ = MeasuredDataset(dataset).items
    loader = DataLoader(dataset, 2, num_workers=1, collate_fn=pseudo_collate)
    for batch in loader:
        samples = attack_samples(batch['data_samples'], 'cpu', 'input')
        pairs = zip(batch['inputs'], samples, batch['data_samples'], strict=True)
        for image, sample, own in pairs:
            region = region_of(sample)
            assert region is not None
            assert torch.equal(region, picture(image))
            assert region_of(own) is not None


def test_an_attack_that_leaves_the_region_is_put_back():
    clean = torch.zeros(3, 4, 5)
    region = torch.zeros(1, 4, 5, dtype=torch.bool)
    region[:, 1:3] = True
    sample, plain = DetDataSample(), DetDataSample()
    sample.set_field(region, REGION)
    found = restored([clean + 1] * 2, [clean] * 2, [sample, plain])
    assert torch.equal(found[0], region.float().expand(3, 4, 5))
    assert torch.equal(found[1], clean + 1)


class Fussy:
    """Does not bear pictures of one colour."""

    def __call__(self, results: dict) -> dict:
        if results['img'].std() == 0:
            raise ValueError('nothing to see')
        return results


class Growing:
    """Makes another size every time, from a source of its own."""

    sizes = iter(range(10, 1000))

    def __call__(self, results: dict) -> dict:
        side = next(type(self).sizes)
        results['img'] = cv2.resize(results['img'], (side, side))
        return results


@pytest.mark.parametrize(('step', 'reason'), [(Fussy, 'nothing to see'), (Growing, '')])
def test_what_cannot_be_measured_is_attackable(step, reason, bright):
    TRANSFORMS.register_module(module=step, force=True)
    pad = dict(type='Pad', pad_to_square=True, pad_val=GREY)
    measured = MeasuredDataset(built(bright, [dict(type=step.__name__), pad]))
    items = [measured[0], measured[1]]
    assert all(region_of(item['data_samples']) is None for item in items)
    assert (measured.reason or '').endswith(reason)


def test_datasets_without_a_pipeline(tmp_path):
    class Plain(list):
        pass

    sample = {'inputs': torch.zeros(3, 2, 2), 'data_samples': DetDataSample()}
    measured = MeasuredDataset(Plain([sample]))
    assert measured[0] is sample
    assert 'no pipeline' in str(measured.reason)
