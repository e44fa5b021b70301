"""Pipelines run on other pictures, with the same draws and memories."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import tiny
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.dataset import BaseDataset, Compose
from mmrobust.errors import ConfigError
from mmrobust.probing import Probe, decoded_once, probe
from mmrobust.utils.seeding import seeded

LOAD = dict(type='LoadImageFromFile')
BOXES = dict(type='LoadAnnotations', with_bbox=True)
PACK = dict(type='PackDetInputs')
# The steps of YOLOX's and RTMDet's training pipelines that move pixels.
SCALE = (96, 64)
MOSAIC = [
    dict(type='Mosaic', img_scale=SCALE, pad_val=114.0),
    dict(type='RandomAffine', scaling_ratio_range=(0.5, 1.5), border=(-48, -32)),
    dict(type='MixUp', img_scale=SCALE, ratio_range=(0.8, 1.6), pad_val=114.0),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Resize', scale=SCALE, keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
    PACK,
]
CACHED = [
    LOAD,
    BOXES,
    dict(type='CachedMosaic', img_scale=SCALE, pad_val=114.0, max_cached_images=6),
    dict(
        type='RandomResize', scale=(192, 128), ratio_range=(0.5, 1.5), keep_ratio=True
    ),
    dict(type='RandomCrop', crop_size=SCALE),
    dict(type='Pad', size=SCALE, pad_val=dict(img=(114, 114, 114))),
    dict(type='CachedMixUp', img_scale=SCALE, pad_val=114.0, max_cached_images=4),
    PACK,
]


def same(picture: np.ndarray) -> np.ndarray:
    return picture


def black(picture: np.ndarray) -> np.ndarray:
    return np.zeros_like(picture)


@pytest.fixture(scope='module')
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_coco(tmp_path_factory.mktemp('coco'), num_images=5)


def built(coco: Path, steps: list[dict], **wrapper: Any) -> Any:
    inner = {**tiny.dataset(coco, True), 'pipeline': steps}
    return DATASETS.build({**wrapper, 'dataset': inner} if wrapper else inner)


def mixed(coco: Path) -> Any:
    wrapper = dict(type='MultiImageMixDataset', pipeline=MOSAIC)
    return built(coco, [LOAD, BOXES], **wrapper)


def cached(coco: Path) -> Any:
    return built(coco, CACHED)


def pixels(dataset: Any, seed: int) -> torch.Tensor:
    with seeded(seed, torch.device('cpu')):
        return dataset[seed % 4]['inputs']


@pytest.mark.parametrize('make', [mixed, cached])
def test_the_same_pictures_give_the_same_samples(make, coco):
    """Whatever is drawn or remembered, and the dataset itself notices nothing."""
    alone, probed = make(coco), make(coco)
    twin, other = Probe(probed, same), Probe(probed, black)
    differs = 0
    for seed in range(14):
        expected = pixels(alone, seed)
        with seeded(seed, torch.device('cpu')):
            twin_of = twin[seed % 4]['inputs']
            dark = other[seed % 4]['inputs']
            found = probed[seed % 4]['inputs']
        assert torch.equal(found, expected)
        assert torch.equal(twin_of, expected)
        assert dark.shape == expected.shape
        differs += not torch.equal(dark, expected)
    assert differs == 14


def test_all_but_the_picture_stays(coco):
    dataset = built(coco, [LOAD, dict(type='Pad', size=(160, 140)), BOXES, PACK])
    whole = dataset[0]
    found = probe(dataset, 0, lambda picture: np.full_like(picture, 7))
    boxes = [each['data_samples'].gt_instances.bboxes.tensor for each in (found, whole)]
    assert torch.equal(*boxes)
    expected = torch.zeros(3, 140, 160, dtype=torch.uint8)
    expected[:, :96, :128] = 7
    assert torch.equal(found['inputs'], expected)


def test_pictures_are_exchanged_where_they_are_loaded(coco):
    """Also inside of compositions, and once."""
    nested = dict(type='mmcv.RandomApply', prob=1.0, transforms=[LOAD, CACHED[3]])
    for wrapper in ({}, dict(type='RepeatDataset', times=2)):
        dataset = built(coco, [nested, BOXES, PACK], **wrapper)
        shapes: list[tuple[int, ...]] = []

        def white(picture: np.ndarray, seen: list = shapes) -> np.ndarray:
            seen.append(picture.shape)
            return np.full_like(picture, 255)

        assert probe(dataset, 2, white)['inputs'].min() == 255
        assert shapes == [(128, 96, 3)]
    parts = [{**tiny.dataset(coco, True), 'pipeline': [LOAD, BOXES, PACK]}] * 2
    joined = DATASETS.build(dict(type='ConcatDataset', datasets=parts))
    assert probe(joined, len(joined) - 1, black)['inputs'].max() == 0


@TRANSFORMS.register_module(force=True)
class OwnMosaic:
    """Loads the other pictures by itself, in a way of its own, as mmyolo's does."""

    def __init__(self) -> None:
        self.pre_transform = Compose([LOAD])

    def __call__(self, results: dict) -> dict:
        other = self.pre_transform(results['dataset'].get_data_info(0))
        pictures = [other['img'][:60], copy.copy(results)['img'][:30]]
        results.update(img=np.concatenate([each[:, :90] for each in pictures]))
        return results


def test_a_transform_may_load_pictures_by_itself(coco):
    @DATASETS.register_module(force=True)
    class Own(CocoDataset):
        def get_data_info(self, index):
            return {**super().get_data_info(index), 'dataset': self}

    pipeline = [LOAD, BOXES, dict(type='OwnMosaic'), PACK]
    dataset = DATASETS.build(
        {**tiny.dataset(coco, True), 'type': 'Own', 'pipeline': pipeline}
    )
    assert dataset[3]['inputs'].shape == (3, 90, 90)
    assert probe(dataset, 3, black)['inputs'].max() == 0


def test_pictures_may_be_in_the_annotations():
    """As those of CIFAR-10 in mmpretrain."""

    class Pictures(BaseDataset):
        def load_data_list(self):
            return [dict(img=np.full((4, 5, 3), 9, np.uint8), img_shape=(4, 5))]

    pad = TRANSFORMS.build(dict(type='Pad', size=(6, 6), pad_val=dict(img=1)))
    dataset = Pictures(pipeline=[pad])
    found = probe(dataset, 0, black)['img']
    assert found.shape == (6, 6, 3)
    assert found[:4, :5].max() == 0
    assert found.sum() == 3 * (36 - 20)


def test_a_pipeline_may_be_exchanged(coco):
    dataset = built(coco, [LOAD, BOXES, PACK])
    dark = Probe(dataset, black)
    before = dark[0]['inputs'].shape
    pad = dict(type='Pad', size=(200, 200), pad_val=dict(img=9))
    dataset.pipeline = built(coco, [LOAD, BOXES, pad, PACK]).pipeline
    after = dark[0]['inputs']
    assert before == (3, 96, 128)
    assert after.shape == (3, 200, 200)
    assert after.unique().tolist() == [0, 9]


def test_a_file_is_decoded_once(coco, monkeypatch):
    """And what one pipeline draws into its picture reaches no other."""
    decoded, decode = [], mmcv.imfrombytes

    def counted(content, **options):
        decoded.append(content)
        return decode(content, **options)

    monkeypatch.setattr(mmcv, 'imfrombytes', counted)
    dataset = built(coco, [LOAD, BOXES, PACK])
    expected = [dataset[index]['inputs'] for index in (1, 2)]
    decoded.clear()
    with decoded_once():
        for index in (1, 2, 1):
            dataset[index]['inputs'].zero_()
            probe(dataset, index, black)
        found = [dataset[index]['inputs'] for index in (1, 2)]
    assert len(decoded) == 2
    assert mmcv.imfrombytes is counted
    assert all(map(torch.equal, found, expected))


def test_without_a_picture_there_is_nothing_to_exchange():
    class Images:
        def __getitem__(self, index):
            return index

    with pytest.raises(ConfigError, match='Images has no pipeline'):
        probe(Images(), 0, black)
