"""Ground truth in the frame of the network's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import tiny
from mmdet.registry import DATASETS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData

from mmrobust.frame import (
    FRAME,
    TO_INPUT,
    FramedDataset,
    _frame_of,
    attack_samples,
    count_boxes_outside,
)
from mmrobust.geometry import Affine
from mmrobust.region import region_of
from mmrobust.utils.seeding import seeded
from mmrobust.errors import ConfigError


def _sample(boxes, masks=None) -> DetDataSample:
    sample = DetDataSample(
        metainfo=dict(
            img_id=7, ori_shape=(50, 100), img_shape=(100, 150), scale_factor=(1.5, 2.0)
        )
    )
    instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]))
    if masks is not None:
        instances.masks = masks
    sample.gt_instances = instances
    return sample


@pytest.mark.parametrize('kind', [HorizontalBoxes, lambda boxes: boxes])
def test_boxes_go_to_the_input_frame_and_the_original_stays(kind):
    sample = _sample(kind(torch.tensor([[10.0, 20.0, 30.0, 40.0]])))
    for _ in range(2):  # several attacks use the same sample
        (copy,) = attack_samples([sample], 'cpu', 'original')
        boxes = copy.gt_instances.bboxes
        boxes = boxes.tensor if hasattr(boxes, 'tensor') else boxes
        assert boxes.tolist() == [[15, 40, 45, 80]]
    original = sample.gt_instances.bboxes
    original = original.tensor if hasattr(original, 'tensor') else original
    assert original.tolist() == [[10, 20, 30, 40]]
    assert copy.metainfo['img_id'] == 7


def test_boxes_in_the_input_frame_stay():
    sample = _sample(HorizontalBoxes(torch.tensor([[10.0, 20.0, 30.0, 40.0]])))
    (copy,) = attack_samples([sample], 'cpu', 'input')
    assert copy.gt_instances.bboxes.tensor.tolist() == [[10, 20, 30, 40]]


def test_proposals_come_along_as_they_are():
    """ProposalBroadcaster has resized them with the image, wherever the boxes are."""
    sample = _sample(HorizontalBoxes(torch.tensor([[10.0, 20.0, 30.0, 40.0]])))
    sample.proposals = InstanceData(
        bboxes=torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), scores=torch.ones(2)
    )
    (copy,) = attack_samples([sample], 'cpu', 'original')
    assert copy.proposals.bboxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    copy.proposals.bboxes += 1
    assert sample.proposals.bboxes[0].tolist() == [1, 2, 3, 4]


def test_masks_follow():
    bitmap = np.zeros((1, 50, 100), np.uint8)
    bitmap[0, 20:40, 10:30] = 1
    polygon = [np.array([10.0, 20, 30, 20, 30, 40, 10, 40])]
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    (copy,) = attack_samples(
        [_sample(boxes, BitmapMasks(bitmap, 50, 100))], 'cpu', 'original'
    )
    rows, columns = np.nonzero(copy.gt_instances.masks.masks[0])
    assert copy.gt_instances.masks.masks.shape == (1, 100, 150)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (15, 40, 44, 79)
    (copy,) = attack_samples(
        [_sample(boxes, PolygonMasks([polygon], 50, 100))], 'cpu', 'original'
    )
    assert copy.gt_instances.masks.masks[0][0].tolist() == [
        15, 40, 45, 40, 45, 80, 15, 80,
    ]  # fmt: skip
    assert bitmap.sum() == 400


def test_images_without_objects_are_kept():
    sample = _sample(torch.zeros(0, 4))
    sample.gt_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    (copy,) = attack_samples([sample], 'cpu', 'original')
    assert len(copy.gt_instances) == 0
    assert count_boxes_outside([copy]) == 0


def test_boxes_of_the_wrong_frame_are_counted():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [150.0, 80.0, 220.0, 120.0]])
    sample = _sample(boxes[:1])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]))
    assert count_boxes_outside(attack_samples([sample], 'cpu', 'input')) == 1


LOAD = dict(type='LoadImageFromFile')
ANNOTATIONS = dict(type='LoadAnnotations', with_bbox=True)
RESIZE = dict(type='Resize', scale=(64, 64), keep_ratio=True)
PAD = dict(type='Pad', size_divisor=32)
FLIP = dict(type='RandomFlip', prob=1.0)
MAYBE = dict(type='RandomFlip', prob=0.5)
CROP = dict(type='RandomCrop', crop_size=(60, 70), allow_negative_crop=True)
BOX = dict(type='FrameTestLetterbox')
SHEAR = dict(type='FrameTestShear')
PACK = dict(type='PackDetInputs')


@TRANSFORMS.register_module(name='FrameTestLetterbox')
class Letterbox:
    """A centred letterbox of 80 x 100 pixels, as mmyolo's LetterResize makes."""

    def __call__(self, results: dict) -> dict:
        height, width = results['img'].shape[:2]
        scale = min(80 / height, 100 / width)
        size = round(height * scale), round(width * scale)
        image = cv2.resize(results['img'], size[::-1])
        top, left = (80 - size[0]) // 2, (100 - size[1]) // 2
        whole = np.full((80, 100, 3), 114, image.dtype)
        whole[top : top + size[0], left : left + size[1]] = image
        factors = size[1] / width, size[0] / height
        results.update(img=whole, img_shape=whole.shape[:2], scale_factor=factors)
        if 'gt_bboxes' in results:
            results['gt_bboxes'].rescale_(factors)
            results['gt_bboxes'].translate_((left, top))
        return results


@TRANSFORMS.register_module(name='FrameTestWave')
class Wave:
    """Moves rows by a sine, which no affine map does."""

    def __call__(self, results: dict) -> dict:
        rows = enumerate(results['img'])
        moved = [np.roll(row, round(9 * np.sin(i / 5)), 0) for i, row in rows]
        results['img'] = np.stack(moved)
        return results


@TRANSFORMS.register_module(name='FrameTestJitter')
class Jitter:
    """Moves the boxes and not the picture."""

    def __call__(self, results: dict) -> dict:
        results['gt_bboxes'].translate_((7, 0))
        return results


def _config(coco: Path, *steps: dict) -> dict:
    keys = ('img_id', 'ori_shape', 'img_shape', 'scale_factor')
    pack = dict(type='PackDetInputs', meta_keys=keys)
    return {**tiny.dataset(coco, True), 'pipeline': [LOAD, *steps, pack]}


def _framed(config: dict) -> FramedDataset:
    return FramedDataset(DATASETS.build(config))


def _boxes(sample: Any) -> torch.Tensor:
    (copy,) = attack_samples([sample], 'cpu')
    return copy.gt_instances.bboxes.tensor


@pytest.mark.parametrize(
    'steps',
    [(RESIZE,), (RESIZE, PAD), (BOX,), (FLIP, RESIZE), (RESIZE, FLIP), (BOX, FLIP)],
)
def test_annotations_may_be_loaded_before_and_after(coco, steps):
    """Either order gives an attack the same boxes, of one dataset or of two."""
    early, late = _config(coco, ANNOTATIONS, *steps), _config(coco, *steps, ANNOTATIONS)
    joined = _framed(dict(type='ConcatDataset', datasets=[late, early]))
    count = len(joined.dataset) // 2
    for i in range(count - 1):  # the last one has no objects
        samples = [joined[place]['data_samples'] for place in (i, count + i)]
        assert [sample.get(FRAME) for sample in samples] == ['original', 'input']
        first, second = map(_boxes, samples)
        torch.testing.assert_close(first, second, rtol=0, atol=0.5)
        # What the evaluator reads stays.
        info = joined.dataset.get_data_info(i)
        given = torch.tensor([each['bbox'] for each in info['instances']])
        assert torch.equal(samples[0].gt_instances.bboxes.tensor, given)


def test_a_resize_alone_is_exactly_that_of_scale_factor(coco):
    for i in range(3):
        sample = _framed(_config(coco, RESIZE, PAD, ANNOTATIONS))[i]['data_samples']
        assert sample.get(TO_INPUT) is None
        factors = torch.tensor(sample.scale_factor).repeat(2)
        expected = sample.gt_instances.bboxes.tensor * factors
        torch.testing.assert_close(_boxes(sample), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('late', [True, False])
def test_random_flips_and_crops_are_those_of_the_image(coco, late):
    """Whatever is drawn, the map says where each point of the picture went."""
    steps = (ANNOTATIONS, MAYBE, CROP) if not late else (MAYBE, CROP, ANNOTATIONS)
    framed, plain = _framed(_config(coco, *steps)), _framed(_config(coco, ANNOTATIONS))
    flips = set()
    for seed in range(8):
        with seeded(seed, torch.device('cpu')):
            item = framed[0]
        sample = item['data_samples']
        flips.add(float(sample.get(TO_INPUT).matrix[0, 0]) < 0)
        assert sample.get(FRAME) == ('original' if late else 'input')
        whole = plain[0]['inputs'].float()
        moved = sample.get(TO_INPUT).points(np.array([[40.5, 30.5], [50.5, 35.5]]))
        for (x, y), (old_x, old_y) in zip(moved, [(40, 30), (50, 35)], strict=True):
            if 0 <= x < 60 and 0 <= y < 70:
                found = item['inputs'][:, int(y), int(x)].float()
                assert torch.equal(found, whole[:, old_y, old_x])
        boxes = _boxes(sample)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([60, 70, 60, 70])).all()
    assert flips == {True, False}


@TRANSFORMS.register_module(name='FrameTestCount')
class Count:
    """Counts the pictures that go through it, of all copies together."""

    seen = 0

    def __call__(self, results: dict) -> dict:
        type(self).seen += 1
        return results


@pytest.mark.parametrize('steps', [(BOX,), (MAYBE, BOX)])
def test_an_image_is_measured_once(coco, steps):
    """One that comes out otherwise, by its random draws, is measured anew."""
    config = _config(coco, *steps, dict(type='FrameTestCount'), ANNOTATIONS)
    kept = FramedDataset(DATASETS.build(config), keep=True)
    found, runs = [], []
    for framed in (_framed(config), kept):
        found.append([])
        for seed in range(6):
            before = Count.seen
            with seeded(seed, torch.device('cpu')):
                item = framed[0]
                found[-1].append((item['inputs'], item['data_samples'], torch.rand(1)))
            runs.append(Count.seen - before)
    for (image, sample, draw), (own, kept_sample, own_draw) in zip(*found, strict=True):
        assert torch.equal(image, own)
        assert torch.equal(draw, own_draw)
        assert torch.equal(region_of(sample), region_of(kept_sample))
        assert sample.get(FRAME) == kept_sample.get(FRAME)
        (first, second) = (each.get(TO_INPUT) for each in (sample, kept_sample))
        assert np.array_equal(first.matrix, second.matrix)
        assert np.array_equal(first.shift, second.shift)
    assert runs[:7] == [5] * 7
    if MAYBE in steps:  # as soon as it is turned, and back
        assert set(runs[7:]) == {1, 6}
    else:
        assert runs[7:] == [1] * 5


@pytest.mark.parametrize(
    ('steps', 'words'),
    [
        ((dict(type='FrameTestWave'), ANNOTATIONS), 'by no affine map'),
        ((ANNOTATIONS, dict(type='FrameTestJitter')), 'neither where they were'),
    ],
)
def test_a_frame_that_cannot_be_told_is_refused(coco, steps, words):
    sample = _framed(_config(coco, *steps))[0]['data_samples']
    with pytest.raises(ConfigError, match=f'{words}.* set gt_frame='):
        attack_samples([sample], 'cpu')
    # Whoever knows it can say so.
    for frame in ('input', 'original'):
        (copy,) = attack_samples([sample], 'cpu', frame)
        assert len(copy.gt_instances) > 0
    nothing = _framed(_config(coco, *steps))[5]['data_samples']
    assert len(attack_samples([nothing], 'cpu')[0].gt_instances) == 0


def test_what_nobody_has_measured_is_refused():
    with pytest.raises(ConfigError, match='nobody has measured it'):
        attack_samples([_sample(torch.zeros(1, 4))], 'cpu')


def test_turned_boxes_are_told_by_their_centres():
    """Polygons of the annotation became boxes of a centre, sizes and an angle."""
    info = dict(instances=[dict(bbox=[20.0, 20, 40, 30, 30, 50, 10, 40])])
    to_input = Affine(np.diag([0.5, 0.5]), np.array([4.0, 0.0]))
    box = np.array([[25.0, 35, 22, 22, 0.4]])
    moved = np.array([[16.5, 17.5, 11, 11, 0.4]])
    for boxes, expected in ((box, 'original'), (moved, 'input')):
        assert _frame_of(boxes, info, to_input, DetDataSample()) == expected
    assert 'neither' in _frame_of(box + 9, info, to_input, DetDataSample())


def test_masks_and_maps_follow_a_shift():
    """Half the size, 10 pixels to the right and 5 down."""
    bitmap = np.zeros((1, 50, 100), np.uint8)
    bitmap[0, 20:40, 10:30] = 1
    polygon = [np.array([10.0, 20, 30, 20, 30, 40, 10, 40])]
    to_input = Affine(np.diag([0.5, 0.5]), np.array([10.0, 5.0]))
    for masks in (BitmapMasks(bitmap, 50, 100), PolygonMasks([polygon], 50, 100)):
        sample = _sample(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), masks)
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(bitmap).long())
        sample.set_metainfo({FRAME: 'original', TO_INPUT: to_input})
        (copy,) = attack_samples([sample], 'cpu')
        assert copy.gt_instances.bboxes.tolist() == [[15, 15, 25, 25]]
        rows, columns = np.nonzero(copy.gt_instances.masks.to_ndarray()[0])
        assert copy.gt_instances.masks.to_ndarray().shape == (1, 100, 150)
        assert abs(columns.min() - 15) + abs(columns.max() - 24) <= 1
        assert abs(rows.min() - 15) + abs(rows.max() - 24) <= 1
        labels = copy.gt_sem_seg.sem_seg[0]
        assert labels[20, 20] == 1
        assert labels[27, 20] == 0
        assert labels[80, 20] == 255  # no part of the picture


def test_what_a_crop_cuts_off_is_no_ground_truth():
    boxes = torch.tensor([[10.0, 20, 30, 40], [40, 20, 60, 40]])
    sample = _sample(boxes[:1])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2]))
    shift = Affine(np.eye(2), np.array([-35.0, 0.0]))
    sample.set_metainfo({FRAME: 'original', TO_INPUT: shift})
    (copy,) = attack_samples([sample], 'cpu')
    assert copy.gt_instances.bboxes.tolist() == [[5, 20, 25, 40]]
    assert copy.gt_instances.labels.tolist() == [2]


def test_everything_that_a_sample_holds_comes_along():
    sample = _sample(torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
    sample.gt_instances.depths = torch.tensor([3.0])
    sample.gt_depth_map = PixelData(depth=torch.ones(1, 4, 4))
    (copy,) = attack_samples([sample], 'cpu', 'original')
    assert copy.gt_instances.depths.tolist() == [3]
    assert torch.equal(copy.gt_depth_map.depth, torch.ones(1, 4, 4))
    copy.gt_instances.depths += 1
    assert sample.gt_instances.depths.tolist() == [3]


def test_a_segmentation_map_is_resized_with_the_image():
    sample = DetDataSample(
        metainfo=dict(img_shape=(4, 6), ori_shape=(2, 3), scale_factor=(2.0, 2.0))
    )
    sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4))
    loaded = torch.tensor([[[0, 1, 2], [3, 4, 5]]])
    sample.gt_sem_seg = PixelData(sem_seg=loaded)
    (copy,) = attack_samples([sample], 'cpu', 'original')
    expected = loaded.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(copy.gt_sem_seg.sem_seg, expected)
    assert torch.equal(sample.gt_sem_seg.sem_seg, loaded)
    assert set(copy.keys()) == {'gt_instances', 'gt_sem_seg'}
