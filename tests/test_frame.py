"""Ground truth in the frame of the network's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tiny
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData

from mmrobust.frame import attack_samples, count_boxes_outside, gt_frame_of
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
FLIP = dict(type='RandomFlip', prob=0.0)
PACK = dict(type='PackDetInputs')


def _dataset(coco, pipeline):
    return DATASETS.build({**tiny.dataset(coco, True), 'pipeline': pipeline})


@pytest.mark.parametrize(
    ('pipeline', 'frame'),
    [
        ([LOAD, RESIZE, ANNOTATIONS, PACK], 'original'),
        ([LOAD, RESIZE, PAD, ANNOTATIONS, FLIP, PACK], 'original'),
        ([LOAD, ANNOTATIONS, RESIZE, FLIP, PACK], 'input'),
        ([LOAD, ANNOTATIONS, PACK], 'input'),
    ],
)
def test_the_frame_is_read_off_the_pipeline(coco, pipeline, frame):
    dataset = _dataset(coco, pipeline)
    assert gt_frame_of(dataset) == frame
    inner = {**tiny.dataset(coco, True), 'pipeline': pipeline}
    wrapped = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=inner))
    assert gt_frame_of(wrapped) == frame
    joined = DATASETS.build(dict(type='ConcatDataset', datasets=[inner, inner]))
    assert gt_frame_of(joined) == frame


@pytest.mark.parametrize(
    ('pipeline', 'words'),
    [
        ([LOAD, RESIZE, PACK], 'loads no annotations'),
        ([LOAD, FLIP, ANNOTATIONS, PACK], 'RandomFlip stands before'),
        ([LOAD, RESIZE, ANNOTATIONS, RESIZE, PACK], 'before and after'),
    ],
)
def test_a_frame_that_cannot_be_known_is_refused(coco, pipeline, words):
    with pytest.raises(ConfigError, match=words):
        gt_frame_of(_dataset(coco, pipeline))


def test_loaded_boxes_land_on_the_resized_objects(coco):
    """Either order of the pipeline gives an attack the same boxes."""
    late = _dataset(coco, [LOAD, RESIZE, ANNOTATIONS, PACK])
    early = _dataset(coco, [LOAD, ANNOTATIONS, RESIZE, PACK])
    for i in range(len(late)):
        boxes = [
            attack_samples([data[i]['data_samples']], 'cpu', gt_frame_of(data))[0]
            for data in (late, early)
        ]
        first, second = (sample.gt_instances.bboxes.tensor for sample in boxes)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


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
