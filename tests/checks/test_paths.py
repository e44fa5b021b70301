"""Detectors that predict by another network than the one that their loss sees."""

import pytest
import tiny
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from torch import nn

from mmrobust.batch import float_images, with_images
from mmrobust.checks import path_difference
from mmrobust.frame import attack_samples
from mmrobust.objective import LossOracle, Objective, loss_mode
from mmrobust.utils.models import replaced
from mmrobust.utils.seeding import seeded

CPU = torch.device('cpu')


def compared(model, coco, masks=False):
    batch = pseudo_collate([DATASETS.build(tiny.dataset(coco, True, masks=masks))[0]])
    images = float_images(batch, 'cpu')
    samples = attack_samples(batch['data_samples'], 'cpu', 'original')

    def ask():
        with loss_mode(model), seeded(0, CPU):
            LossOracle(model, batch, samples, Objective()).value(images)

    def predict():
        shown = with_images(batch, images)
        shown['data_samples'] = [sample.clone() for sample in samples]
        with seeded(0, CPU):
            model.test_step(shown)

    return path_difference(model, ask, predict)


def built(family):
    config = ConfigDict(tiny.FAMILIES[family]())
    return tiny.filled(MODELS.build(config)).eval()


@pytest.mark.parametrize('family', list(tiny.FAMILIES))
def test_sound_detectors_have_one_path(coco, family):
    assert compared(built(family), coco, masks=family == 'mask_rcnn') == ''


def blurred(images):
    return nn.functional.avg_pool2d(images, 5, 1, 2)


def smaller(images):
    return nn.functional.interpolate(images, scale_factor=0.5)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (blurred, 'its backbone gets other values'),
        (smaller, 'its backbone gets another shape (1x3x48x64 in place of 1x3x96x128)'),
        (lambda images: images + 1e-3, ''),
    ],
)
def test_what_is_done_to_images_in_predict(coco, change, expected):
    model = built('fcos')
    stock = model.predict

    def predict(inputs, samples, **kwargs):
        return stock(change(inputs), samples, **kwargs)

    with replaced(model, 'predict', predict):
        found = compared(model, coco)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ('part', 'expected'),
    [
        ('neck', 'its heads get other values'),
        ('bbox_head', 'its bbox_head gets other values'),
    ],
)
def test_what_is_done_to_features_in_predict(coco, part, expected):
    model = built('fcos')
    head, neck = model.bbox_head, model.neck
    stock, of_head, of_neck = model.predict, head.predict, neck.forward

    def half(features):
        return tuple(each / 2 for each in features)

    def predict(*args, **kwargs):
        with replaced(neck, 'forward', lambda given: half(of_neck(given))):
            return stock(*args, **kwargs)

    def predict_by_head(given, *args, **kwargs):
        return of_head(half(given), *args, **kwargs)

    change = {
        'neck': (model, 'predict', predict),
        'bbox_head': (head, 'predict', predict_by_head),
    }
    with replaced(*change[part]):
        assert compared(model, coco).startswith(expected)


def test_a_second_model_in_predict(coco):
    model = built('fcos')
    model.judge = nn.Sequential(nn.Conv2d(3, 1, 1))
    stock = model.predict

    def predict(inputs, samples, **kwargs):
        model.judge(inputs)
        return stock(inputs, samples, **kwargs)

    with replaced(model, 'predict', predict):
        assert compared(model, coco) == 'it runs judge.0, which the loss does not'


def test_a_model_of_other_parts_is_passed_over():
    model = nn.Conv2d(3, 1, 1)
    image = torch.zeros(1, 3, 4, 4)
    assert path_difference(model, lambda: model(image), lambda: model(image + 1)) == ''
