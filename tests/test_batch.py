"""Batches that are taken apart and left alone."""

import pytest
import tiny
import torch
from mmdet.registry import DATASETS
from mmengine.dataset import pseudo_collate

from mmrobust.batch import (
    check_range,
    float_images,
    resize_delta,
    split_batch,
    with_images,
    with_samples,
)
from mmrobust.errors import ConfigError
from mmrobust.region import collated, region_of, regions_in


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


def test_objects_of_all_images_in_one_tensor():
    """As mmyolo's fast collate has them; an image without objects has no row."""
    rows = torch.tensor([[0, 2, 1, 1, 5, 5], [2, 0, 0, 0, 3, 4], [0, 1, 2, 2, 6, 7.0]])
    region = torch.ones(1, 8, 16, dtype=torch.bool)
    given = dict(bboxes_labels=rows, attackable=[None, region, None])
    batch = dict(inputs=torch.zeros(3, 3, 8, 16), data_samples=given)
    assert regions_in(batch) == [None, region, None]
    found = with_samples(batch)['data_samples']
    truth = [sample.gt_instances for sample in found]
    assert [each.labels.tolist() for each in truth] == [[2, 1], [], [0]]
    assert truth[0].bboxes.tolist() == [[1, 1, 5, 5], [2, 2, 6, 7]]
    assert truth[1].bboxes.shape == (0, 4)
    assert found[0].img_shape == (8, 16)
    assert [region_of(sample) for sample in found] == [None, region, None]
    listed = dict(inputs=batch['inputs'], data_samples=found)
    assert with_samples(listed) is listed
    items = [dict(data_samples=sample) for sample in found]
    again = collated(lambda items: dict(data_samples={}), items)
    assert again['data_samples'] == dict(attackable=[None, region, None])
    batch['data_samples']['masks'] = torch.zeros(2, 8, 16)
    with pytest.raises(ConfigError, match='a dict of bboxes_labels, att'):
        with_samples(batch)


def noise(low, high, dtype=torch.float32):
    values = torch.linspace(low, high, 3 * 8 * 8).reshape(3, 8, 8)
    return values.to(dtype)


@pytest.mark.parametrize(
    ('image', 'distorted', 'message'),
    [
        (noise(-2.1, 2.6), False, r'from -2.1 to 2.6 \(float32\)'),
        (noise(-2.1, 2.6), True, r'from -2.1 to 2.6 \(float32\)'),
        (noise(0, 1), False, 'from 0 to 1'),
        (noise(0, 1), True, 'from 0 to 1'),
        (noise(0, 40_000, torch.int32), False, r'from 0 to 4e\+04 \(int32\)'),
        (noise(0, 4095, torch.int16), True, r'to 4095 \(int16\)'),
        (noise(0, 40_000).to(torch.uint16), True, r'to 4e\+04 \(uint16\)'),
        (noise(-30, 300), False, 'from -30 to 300'),
        (noise(0, 255, torch.uint8), False, None),
        (noise(0, 255, torch.int32), False, None),
        (noise(-0.5, 255.4), False, None),
        (noise(0, 1, torch.int16), False, None),  # a black picture
        (noise(0, 3), False, None),
        (noise(-200, 430), True, None),  # PhotoMetricDistortion
    ],
)
def test_images_are_in_pixel_units(image, distorted, message):
    if message is None:
        check_range([image, image], distorted)
        return
    with pytest.raises(ConfigError, match=message):
        check_range([noise(0, 255, torch.uint8), image], distorted)


@pytest.mark.parametrize('loop', ['test', 'train'])
def test_a_pipeline_that_normalises_is_refused(build_runner, coco, loop):
    normalise = dict(
        type='mmcv.Normalize', mean=[120.0] * 3, std=[60.0] * 3, to_rgb=False
    )
    loader = tiny.loader(coco, test=loop == 'test')
    loader['dataset']['pipeline'].insert(-1, normalise)
    adversary = dict(type='mmrobust.FreeAdversary', replays=2)
    train = dict(
        type='mmrobust.AdvEpochBasedTrainLoop', max_epochs=1, adversary=adversary
    )
    attacks = dict(noise=dict(type='mmrobust.RandomNoise', eps=8))
    runner = build_runner(
        **{f'{loop}_dataloader': loader},
        train_cfg=train,
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=attacks),
    )
    with pytest.raises(ConfigError, match=r'values from -\d.* to 2\.\d+ \(float32'):
        runner.train() if loop == 'train' else runner.test()
