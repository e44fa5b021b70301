"""The way from the picture to the network: followed, undone, and run again."""

import cv2
import numpy as np
import pytest
import torch

import mmrobust  # noqa: F401
from mmdet.registry import DATASETS
from mmengine.dataset import pseudo_collate

import tiny
from mmrobust.errors import ConfigError
from mmrobust.evaluation.original_pixels import Geometry, Resizer
from mmrobust.evaluation.picture_pipeline import PicturePipeline
from mmrobust.resizing import bilinear_weights

LOAD = dict(type='LoadImageFromFile')
ANNOTATIONS = dict(type='LoadAnnotations', with_bbox=True)
KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
PACK = dict(type='PackDetInputs', meta_keys=KEYS)
PAD = dict(type='Pad', size=(160, 144), pad_val=dict(img=(114, 7, 200)))


def resize(*scale, **kwargs):
    return dict(type='Resize', scale=scale, keep_ratio=True, **kwargs)


def built(root, *middle, **kwargs):
    config = tiny.dataset(root, test=True, **kwargs)
    config['pipeline'] = [LOAD, *middle, ANNOTATIONS, PACK]
    return DATASETS.build(config)


PIPELINES = {
    'larger': [resize(200, 170)],
    'smaller': [resize(61, 50)],
    'stretched': [dict(type='Resize', scale=(90, 110), keep_ratio=False)],
    'halved': [dict(type='Resize', scale_factor=0.5)],
    'fix': [dict(type='FixScaleResize', scale=(100, 77), keep_ratio=True)],
    'shortest': [dict(type='ResizeShortestEdge', scale=70, max_size=90)],
    'padded': [resize(120, 110), PAD],
    'square': [resize(64, 64), dict(type='Pad', pad_to_square=True, pad_val=114)],
    'divisor': [dict(type='Pad', size_divisor=32)],
    'nothing': [],
}


@pytest.mark.parametrize('name', PIPELINES)
def test_the_differentiable_copy_is_opencv_up_to_its_rounding(coco, name):
    dataset = built(coco, *PIPELINES[name])
    follower = PicturePipeline(dataset)
    for index in range(len(dataset)):
        data = dataset[index]
        sample, expected = data['data_samples'], data['inputs'].float()
        picture = follower.picture(sample.img_id)
        for image in (sample, sample.img_id):
            found = follower.resizer(image)(picture)
            assert found.shape == expected.shape
            # OpenCV rounds products of 8-bit pictures, and what it rounds from, too.
            assert (found - expected).abs().max() < 0.85
            assert (found - expected).abs().mean() < 0.3
        batch = follower.rerun(
            sample.img_id, picture.permute(1, 2, 0).contiguous().numpy(), sample
        )
        # Floating-point pictures are not rounded by OpenCV.
        assert (batch['inputs'][0] - found).abs().max() < 1e-3


def test_resizing_follows_the_definition():
    """From 3 pixels to 2: centres at 0.25 and 1.75; to 6: the border is repeated."""
    assert bilinear_weights(3, 2).tolist() == [[0.75, 0.25, 0], [0, 0.25, 0.75]]
    larger = bilinear_weights(3, 6).tolist()
    assert larger[0] == [1, 0, 0]
    assert larger[1] == [0.75, 0.25, 0]
    assert larger[5] == [0, 0, 1]
    assert bilinear_weights(1, 3).tolist() == [[1], [1], [1]]


def test_the_gradient_is_that_of_torchs_own_interpolation():
    torch.manual_seed(0)
    sizes = Geometry((23, 17), (31, 9), (40, 16))
    picture = torch.rand(3, 23, 17, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 40, 16, dtype=torch.float64)
    found = Resizer(sizes, (1, 2, 3))(picture)
    (grad,) = torch.autograd.grad((found * weights).sum(), picture)
    torches = torch.nn.functional.interpolate(picture[None], (31, 9), mode='bilinear')[
        0
    ]
    (expected,) = torch.autograd.grad((torches * weights[:, :31, :9]).sum(), picture)
    assert torch.allclose(found[:, :31, :9], torches, atol=1e-12)
    assert torch.allclose(grad, expected, atol=1e-12)
    assert found[:, 31:].amax((1, 2)).tolist() == [1, 2, 3]
    assert found[:, :, 9:].amin((1, 2)).tolist() == [1, 2, 3]


def test_a_picture_of_another_size_is_refused():
    resizer = Resizer(Geometry((8, 8), (4, 4), (4, 4)))
    with pytest.raises(ConfigError, match='8 x 8 pixels was expected'):
        resizer(torch.zeros(3, 9, 8))


def test_where_nothing_changes_the_picture_itself_comes_back(coco):
    follower = PicturePipeline(built(coco))
    picture = follower.picture(10)
    resizer = follower.resizer(10)
    assert resizer(picture) is picture


def test_pictures_are_what_the_file_holds(coco):
    follower = PicturePipeline(built(coco, resize(50, 50)))
    expected = cv2.imread(str(coco / 'images' / '002.png'))
    found = follower.picture(12)
    assert found.dtype == torch.float32
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_images_are_looked_up_as_far_as_needed(coco):
    dataset = built(coco)
    asked = []
    original = dataset.get_data_info

    def get_data_info(index):
        asked.append(index)
        return original(index)

    dataset.get_data_info = get_data_info
    follower = PicturePipeline(dataset)
    assert follower.index(12) == 2
    assert follower.index(10) == 0
    assert asked == [0, 1, 2]
    with pytest.raises(ConfigError, match='img_id 99'):
        follower.index(99)


def test_ids_of_a_subset_lead_to_its_images(coco):
    dataset = built(coco, resize(50, 50))
    dataset.full_init()
    dataset.get_subset_([1, 4])
    follower = PicturePipeline(dataset)
    assert follower.index(14) == 1
    batch = follower.rerun(14, follower.picture(14).permute(1, 2, 0).byte().numpy())
    assert batch['data_samples'][0].img_id == 14
    with pytest.raises(ConfigError, match='img_id 10'):
        follower.index(10)


def _equal(left, right):
    assert torch.equal(left['inputs'][0], right['inputs'][0])
    assert left['inputs'][0].dtype == right['inputs'][0].dtype
    a, b = left['data_samples'][0], right['data_samples'][0]
    assert a.metainfo == b.metainfo
    assert torch.equal(a.gt_instances.bboxes.tensor, b.gt_instances.bboxes.tensor)
    assert torch.equal(a.gt_instances.labels, b.gt_instances.labels)


@pytest.mark.parametrize('name', PIPELINES)
@pytest.mark.parametrize('from_file', [False, True])
def test_the_clean_picture_gives_what_the_loader_gives(coco, name, from_file, tmp_path):
    dataset = built(coco, *PIPELINES[name])
    follower = PicturePipeline(dataset)
    for index in range(len(dataset)):
        ordinary = pseudo_collate([dataset[index]])
        sample = ordinary['data_samples'][0]
        picture = follower.picture(sample.img_id).permute(1, 2, 0)
        picture = picture.byte().numpy()
        if from_file:
            cv2.imwrite(str(tmp_path / 'other.png'), picture)
            picture = tmp_path / 'other.png'
        _equal(follower.rerun(sample.img_id, picture), ordinary)
        _equal(follower.rerun(sample.img_id, picture, sample), ordinary)


def test_the_loaders_own_type_is_kept(coco):
    config = tiny.dataset(coco, test=True)
    config['pipeline'][0] = dict(LOAD, to_float32=True)
    dataset = DATASETS.build(config)
    follower = PicturePipeline(dataset)
    ordinary = pseudo_collate([dataset[0]])
    picture = follower.picture(10).permute(1, 2, 0).byte().numpy()
    _equal(follower.rerun(10, picture), ordinary)


def test_predictions_on_the_clean_picture_are_the_ordinary_ones(coco, build_runner):
    runner = build_runner()
    dataset = runner.test_dataloader.dataset
    follower = PicturePipeline(dataset)
    model = runner.model.eval()
    for index in range(3):
        ordinary = pseudo_collate([dataset[index]])
        img_id = ordinary['data_samples'][0].img_id
        picture = follower.picture(img_id).permute(1, 2, 0).byte().numpy()
        with torch.no_grad():
            (again,) = model.test_step(follower.rerun(img_id, picture))
            (first,) = model.test_step(ordinary)
        assert len(first.pred_instances) > 0
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(first.pred_instances[key], again.pred_instances[key])


@pytest.mark.parametrize('size', [(40, 60), (192, 256), (31, 77)])
def test_boxes_come_out_in_the_frame_of_the_original(coco, size):
    """The corners of the input are those of the original, whatever lay between."""
    dataset = built(coco, resize(100, 90), PAD)
    follower = PicturePipeline(dataset)
    ordinary = dataset[0]['data_samples']
    height, width = ordinary.ori_shape
    picture = np.full((*size, 3), 9, np.uint8)
    batch = follower.rerun(10, picture, ordinary)
    (sample,) = batch['data_samples']
    # Padding tells how far the picture reaches.
    shown = (batch['inputs'][0] == 9).all(0).nonzero().amax(0) + 1
    assert sample.ori_shape == (height, width)
    assert shown[1] / sample.scale_factor[0] == pytest.approx(width)
    assert shown[0] / sample.scale_factor[1] == pytest.approx(height)
    assert sample.img_shape == tuple(batch['inputs'][0].shape[1:])
    expected = ordinary.gt_instances.bboxes.tensor
    assert torch.equal(sample.gt_instances.bboxes.tensor, expected)


@pytest.mark.parametrize('given', [False, True])
def test_annotations_loaded_before_resizing_stay_the_ordinary_ones(coco, given):
    config = tiny.dataset(coco, test=True)
    config['pipeline'] = [LOAD, ANNOTATIONS, resize(100, 90), PACK]
    dataset = DATASETS.build(config)
    ordinary = dataset[0]['data_samples']
    batch = PicturePipeline(dataset).rerun(
        10, np.zeros((40, 60, 3), np.uint8), ordinary if given else None
    )
    (sample,) = batch['data_samples']
    expected = ordinary.gt_instances.bboxes.tensor
    assert torch.equal(sample.gt_instances.bboxes.tensor, expected)


def test_predicted_boxes_follow_a_resized_picture(coco, build_runner):
    """The network's own input, given again, is resized by nothing."""
    runner = build_runner()
    dataset = runner.test_dataloader.dataset
    follower = PicturePipeline(dataset)
    model = runner.model.eval()
    ordinary = pseudo_collate([dataset[1]])
    sample = ordinary['data_samples'][0]
    assert sample.scale_factor != (1.0, 1.0)
    again = ordinary['inputs'][0].permute(1, 2, 0).contiguous().numpy()
    batch = follower.rerun(sample.img_id, again, sample)
    assert torch.equal(batch['inputs'][0], ordinary['inputs'][0])
    with torch.no_grad():
        (found,) = model.test_step(batch)
        (first,) = model.test_step(ordinary)
    assert len(first.pred_instances) > 0
    assert torch.allclose(found.pred_instances.bboxes, first.pred_instances.bboxes)


def test_padding_is_cut_off(coco):
    follower = PicturePipeline(built(coco, resize(100, 90), PAD))
    data = follower.dataset[0]
    whole = data['inputs']
    shown = follower.without_padding(data['data_samples'], whole)
    padding = torch.tensor([114, 7, 200], dtype=torch.uint8)[:, None, None]
    assert whole.shape == (3, 144, 160)
    assert shown.shape == (3, 75, 100)
    assert (whole[:, 75:] == padding).all()
    assert (whole[:, :, 100:] == padding).all()


def _refusals():
    return {
        'flip': ([LOAD, resize(50, 50), dict(type='RandomFlip', prob=0.5)], 'RandomF'),
        'crop': ([LOAD, dict(type='RandomCrop', crop_size=(8, 8))], 'RandomCrop'),
        'pillow': ([LOAD, resize(50, 50, backend='pillow')], "'pillow'"),
        'area': ([LOAD, resize(50, 50, interpolation='area')], "'area'"),
        'short': (
            [LOAD, dict(type='ResizeShortestEdge', scale=9, interpolation='bicubic')],
            "'bicubic'",
        ),
        'fixed': (
            [LOAD, dict(type='FixShapeResize', width=9, height=9)],
            'FixShapeResize',
        ),
        'twice': ([LOAD, resize(50, 50), resize(60, 60)], 'Resize follows on Resize'),
        'late': ([LOAD, PAD, resize(60, 60)], 'Resize follows on Pad'),
        'pads': ([LOAD, PAD, PAD], 'two Pad'),
        'mirror': ([LOAD, dict(PAD, padding_mode='reflect')], "'reflect'"),
        'grey': ([dict(LOAD, color_type='grayscale')], "'grayscale'"),
        'loaders': ([LOAD, LOAD], 'two LoadImageFromFile'),
        'nothing': ([], 'no LoadImageFromFile'),
        'array': ([dict(type='mmdet.LoadImageFromNDArray')], 'LoadImageFromNDArray'),
        'early': ([resize(50, 50), LOAD], 'Resize comes before'),
    }


@pytest.mark.parametrize('name', _refusals())
def test_pipelines_that_cannot_be_followed_are_refused(coco, name):
    transforms, message = _refusals()[name]
    config = tiny.dataset(coco, test=True)
    config['pipeline'] = [*transforms, ANNOTATIONS, PACK]
    with pytest.raises(ConfigError, match=message):
        PicturePipeline(DATASETS.build(config))


@pytest.mark.parametrize(
    ('last', 'message'),
    [
        (ANNOTATIONS, 'does not end with PackDetInputs'),
        (dict(PACK, meta_keys=KEYS[1:]), 'packs no img_id'),
    ],
)
def test_a_pipeline_has_to_pack_ids(coco, last, message):
    config = tiny.dataset(coco, test=True)
    config['pipeline'] = [LOAD, last]
    with pytest.raises(ConfigError, match=message):
        PicturePipeline(DATASETS.build(config))


def test_wrappers_are_refused(coco):
    wrapper = dict(type='ConcatDataset', datasets=[tiny.dataset(coco, test=True)])
    with pytest.raises(ConfigError, match='ConcatDataset has no pipeline'):
        PicturePipeline(DATASETS.build(wrapper))


@pytest.mark.parametrize(
    'picture', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float64)]
)
def test_other_arrays_are_refused(coco, picture):
    with pytest.raises(ConfigError, match='uint8 or float32'):
        PicturePipeline(built(coco)).rerun(10, picture)
