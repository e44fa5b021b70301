"""Batches that are taken apart and left alone."""

from __future__ import annotations

import pytest
import tiny
import torch
from mmdet.registry import DATASETS
from mmengine.dataset import pseudo_collate

from mmrobust.batch import float_images, resize_delta, split_batch, with_images
from mmrobust.errors import ConfigError


def test_the_loaders_batch_is_not_changed(coco):
    dataset = DATASETS.build(tiny.dataset(coco, False))
    batch = pseudo_collate([dataset[0], dataset[1]])
    before = [image.clone() for image in batch['inputs']]
    images = float_images(batch, 'cpu')
    assert all(image.dtype == torch.float32 for image in images)
    for image in images:
        image += 9
    replaced = with_images(batch, images)
    assert replaced['inputs'] is images
    assert all(map(torch.equal, batch['inputs'], before))
    singles = split_batch(batch)
    assert [len(single['inputs']) for single in singles] == [1, 1]
    assert singles[1]['data_samples'][0] is batch['data_samples'][1]


def test_stacked_batches_stay_stacked():
    batch = {
        'inputs': torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        'data_samples': [1, 2],
    }
    images = float_images(batch, 'cpu')
    assert with_images(batch, images)['inputs'].shape == (2, 3, 4, 4)
    assert split_batch(batch)[0]['inputs'].shape == (1, 3, 4, 4)


def test_several_branches_are_refused():
    with pytest.raises(ConfigError, match='sup, unsup_teacher'):
        float_images({'inputs': {'sup': [], 'unsup_teacher': []}}, 'cpu')


def test_a_resized_perturbation_keeps_its_values():
    delta = torch.tensor([[[-4.0, 4.0], [0.0, 2.0]]])
    resized = resize_delta(delta, (1, 4, 4))
    assert resized.unique().tolist() == [-4, 0, 2, 4]
    assert resize_delta(delta, (1, 2, 2)) is delta
