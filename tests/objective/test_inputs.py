"""The samples of an attacked batch are preprocessed once, and nobody can tell."""

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmrobust.objective.inputs import Inputs
from benchmarks.synthetic import Drawing

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
NORMAL = dict(mean=MEAN, std=STD)
SIZES = [(50, 70), (64, 33)]

SETTINGS = {
    'plain': {},
    'normalised': NORMAL,
    'one mean': dict(mean=[100.0], std=[2.0]),
    'to rgb, divisor': dict(NORMAL, bgr_to_rgb=True, pad_size_divisor=32),
    'to bgr, pad value': dict(
        NORMAL, rgb_to_bgr=True, pad_size_divisor=16, pad_value=7
    ),
    'masks': dict(NORMAL, pad_size_divisor=32, pad_mask=True, mask_pad_value=1),
    'maps': dict(NORMAL, pad_size_divisor=32, pad_seg=True, seg_pad_value=9),
    'box objects': dict(NORMAL, boxtype2tensor=False),
    'augments': dict(
        NORMAL,
        batch_augments=[dict(type='BatchFixedSizePad', size=(128, 128))],
    ),
}


class Model(nn.Module):
    def __init__(self, preprocessor):
        super().__init__()
        self.data_preprocessor = preprocessor


def _drawings(count):
    return [Drawing(*SIZES[i], num_classes=3, seed=i) for i in range(count)]


def _batch(count):
    drawings = _drawings(count)
    samples = [drawing.sample() for drawing in drawings]
    for sample, drawing in zip(samples, drawings, strict=True):
        sample.gt_instances.masks = drawing.bitmaps()
        sample.gt_sem_seg = PixelData(sem_seg=drawing.semantic())
        sample.proposals = drawing.proposals()
    return {'inputs': [drawing.image for drawing in drawings], 'data_samples': samples}


def _content(value):
    """What a sample holds, in a form that can be compared."""
    if hasattr(value, 'all_items'):
        return type(value).__name__, {k: _content(v) for k, v in value.all_items()}
    value = getattr(value, 'tensor', value)
    if hasattr(value, 'to_ndarray'):
        value = value.to_ndarray()
    if isinstance(value, (Tensor, np.ndarray)):
        return np.asarray(value).tolist()
    return value


def _stock(preprocessor, batch, images):
    """With the padding of masks and maps, but not the augmentations, of training."""
    augments, preprocessor.batch_augments = preprocessor.batch_augments, None
    data = preprocessor({**batch, 'inputs': images}, True)
    preprocessor.batch_augments = augments
    return data


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('name', list(SETTINGS))
def test_every_call_gives_what_the_preprocessor_gives(name, count, monkeypatch):
    preprocessor = DetDataPreprocessor(**SETTINGS[name])
    batch, generator = _batch(count), torch.Generator().manual_seed(3)
    inputs = Inputs(Model(preprocessor), batch)
    whole, original = [], DetDataPreprocessor.forward
    monkeypatch.setattr(
        DetDataPreprocessor,
        'forward',
        lambda *args, **kwargs: whole.append(0) or original(*args, **kwargs),
    )
    asked = 0
    for _ in range(3):
        images = [
            torch.rand(3, *size, generator=generator).mul_(255).requires_grad_()
            for size in SIZES[:count]
        ]
        before = len(whole)
        data = inputs(images, batch['data_samples'])
        asked += len(whole) - before
        wanted = _stock(preprocessor, batch, images)
        assert torch.equal(data['inputs'], wanted['inputs'])
        assert list(map(_content, data['data_samples'])) == list(
            map(_content, wanted['data_samples'])
        )
        noise = torch.randn(wanted['inputs'].shape, generator=generator)
        for mine, stock in zip(
            torch.autograd.grad((data['inputs'] * noise).sum(), images),
            torch.autograd.grad((wanted['inputs'] * noise).sum(), images),
            strict=True,
        ):
            assert torch.equal(mine, stock)
    assert asked == 1


def test_what_a_model_writes_into_samples_is_gone_in_the_next_call():
    batch = _batch(1)
    batch['data_samples'][0].set_metainfo({'list': [1]})
    inputs = Inputs(Model(DetDataPreprocessor(**NORMAL)), batch)
    images = [batch['inputs'][0].float()]
    before = _content(inputs(images, batch['data_samples'])['data_samples'][0])
    for _ in range(2):
        (sample,) = inputs(images, batch['data_samples'])['data_samples']
        assert _content(sample) == before
        sample.gt_instances.labels = torch.zeros(2)
        sample.gt_instances.pop('bboxes')
        sample.ignored_instances.extra = torch.ones(0)
        sample.pred_instances = sample.gt_instances
        sample.set_metainfo({'img_shape': (1, 1)})
        sample.metainfo['list'].append(2)
        sample.list.append(2)


def test_other_samples_and_other_shapes_are_not_taken_for_the_same():
    batch = _batch(1)
    inputs = Inputs(Model(DetDataPreprocessor(pad_size_divisor=32)), batch)
    samples, image = batch['data_samples'], batch['inputs'][0].float()
    inputs([image], samples)
    moved = samples[0].clone()
    moved.gt_instances = samples[0].gt_instances[:1]
    (found,) = inputs([image], [moved])['data_samples']
    assert len(found.gt_instances) == 1
    (found,) = inputs([image], samples)['data_samples']
    assert len(found.gt_instances) == 2
    (found,) = inputs([image[:, :30]], samples)['data_samples']
    assert found.batch_input_shape == (32, 96)


class Other(DetDataPreprocessor):
    """What it does with samples is not known."""


class Colours(DetDataPreprocessor):
    """BoxInst's, which makes masks of the colours, in training mode only."""

    def get_images_color_similarity(self): ...


def _hooked():
    preprocessor = DetDataPreprocessor()
    preprocessor.register_forward_hook(lambda module, args, output: output)
    return preprocessor


@pytest.mark.parametrize('make', [Other, Colours, _hooked])
def test_other_preprocessors_do_all_of_their_work_each_time(make, monkeypatch):
    preprocessor, batch, calls = make(), _batch(1), []
    inputs = Inputs(Model(preprocessor), batch)
    original = DetDataPreprocessor.forward
    monkeypatch.setattr(
        DetDataPreprocessor,
        'forward',
        lambda self, data, training=False: (
            calls.append(training) or original(self, data, training)
        ),
    )
    for _ in range(3):
        inputs([batch['inputs'][0].float()], batch['data_samples'])
    assert calls == [make is Colours] * 3


def test_a_preprocessor_that_gives_other_numbers_is_asked_each_time(monkeypatch):
    original, calls = DetDataPreprocessor.forward, []

    def shifted(self, data, training=False):
        calls.append(0)
        found = original(self, data, training)
        return {**found, 'inputs': found['inputs'] + 1}

    monkeypatch.setattr(DetDataPreprocessor, 'forward', shifted)
    batch = _batch(1)
    inputs = Inputs(Model(DetDataPreprocessor(**NORMAL)), batch)
    for _ in range(3):
        inputs([batch['inputs'][0].float()], batch['data_samples'])
    assert len(calls) == 3
