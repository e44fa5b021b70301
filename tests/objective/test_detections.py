"""What Square reads off a detector: by hand, and on real detectors."""

import pytest
import tiny
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import nn

from mmrobust.attacks import PGD, Square
from mmrobust.batch import float_images
from mmrobust.frame import attack_samples
from mmrobust.objective.detections import DetectionOracle, damage
from mmrobust.errors import ConfigError
from mmrobust.objective import loss_mode


BOX, HALF, FAR = [0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]


@pytest.mark.parametrize(
    ('predicted', 'truth', 'expected'),
    [
        # found exactly, found by half, missed, nothing to find
        (([BOX], [0], [0.8]), ([BOX], [0]), -0.8),
        (([HALF], [0], [0.8]), ([BOX], [0]), -0.4 + 0.1 * 0.16 / 1.16),
        (([], [], []), ([BOX], [0]), 0),
        (([], [], []), ([], []), 0),
        # a wrong class or place is a false box as well
        (([BOX], [1], [0.8]), ([BOX], [0]), 0.1 * 0.64 / 1.64),
        (([FAR], [0], [0.5]), ([], []), 0.1 * 0.25 / 1.25),
        # the best detection of each object counts: here 0.9 / 2 < 0.6
        (
            ([HALF, BOX], [0, 0], [0.9, 0.6]),
            ([BOX], [0]),
            -0.6 + 0.1 * 0.2025 / 1.2025,
        ),
        # two objects of two classes, of which one is found
        (([BOX], [0], [1.0]), ([BOX, FAR], [0, 1]), -1.0),
        # a hundred sure false boxes weigh less than a tenth of an object
        (([FAR] * 100, [0] * 100, [1.0] * 100), ([BOX], [0]), 0.1 * 100 / 101),
    ],
)
def test_damage_by_hand(predicted, truth, expected):
    value = damage(tiny.instances(*predicted), tiny.instances(*truth))
    assert float(value) == pytest.approx(expected, abs=1e-5)


def test_detections_in_a_crowd_are_not_false():
    predicted = tiny.instances([BOX, BOX], [0, 1], [0.8, 0.5])
    crowd = tiny.instances([[0, 0, 100, 100]], [0])
    value = damage(predicted, tiny.instances([], []), crowd)
    # The other class has no crowd there.
    assert float(value) == pytest.approx(0.1 * 0.25 / 1.25, abs=1e-5)


def _detector(family='fcos'):
    torch.manual_seed(0)
    config = ConfigDict(tiny.FAMILIES[family]())
    model = MODELS.build(config)
    model.init_weights()
    if family == 'fcos':
        # As it comes, its boxes are as large as a pixel.
        nn.init.constant_(model.bbox_head.conv_reg.bias, 1.5)
    return model.eval()


def _batch(coco, index, scale=(144, 108)):
    data = DATASETS.build(tiny.dataset(coco, True, scale=scale))
    batch = pseudo_collate([data[index]])
    return batch, attack_samples(batch['data_samples'], 'cpu', 'original')


@pytest.mark.parametrize('family', ['fcos', 'faster_rcnn'])
@pytest.mark.parametrize('scale', [(144, 108), (300, 60)])
def test_it_is_the_damage_of_the_stock_prediction(coco, family, scale):
    model = _detector(family)
    batch, samples = _batch(coco, 1, scale)
    original = batch['data_samples'][0]
    assert original.scale_factor[0] != 1
    images = float_images(batch, 'cpu')
    oracle = DetectionOracle(model, batch, samples)
    before = samples[0].gt_instances.bboxes.tensor.clone()
    with loss_mode(model):
        flags = [module.training for module in model.modules()]
        (value,) = oracle.value(images)
        assert flags == [module.training for module in model.modules()]
    assert torch.equal(samples[0].gt_instances.bboxes.tensor, before)
    assert (oracle.forwards, oracle.backwards) == (1, 0)
    # Detections and boxes of the original picture, as the evaluator gets them.
    with torch.no_grad():
        (output,) = model.test_step({**batch, 'inputs': images})
    predicted = output.pred_instances
    expected = damage(predicted, original.gt_instances)
    assert len(predicted) > 3
    assert float(expected) != pytest.approx(0, abs=1e-4)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    # What it would be in the wrong frame.
    wrong = damage(predicted, samples[0].gt_instances)
    assert float(value) != pytest.approx(float(wrong), rel=1e-2)


def test_images_of_a_batch_do_not_touch_each_other(coco):
    model = _detector()
    data = DATASETS.build(tiny.dataset(coco, True, scale=(144, 108)))
    batch = pseudo_collate([data[i] for i in (0, 1, 5)])  # of three sizes
    samples = attack_samples(batch['data_samples'], 'cpu', 'original')
    together = DetectionOracle(model, batch, samples).value(float_images(batch, 'cpu'))
    assert together.shape == (3,)
    for i, index in enumerate((0, 1, 5)):
        alone, own = _batch(coco, index)
        oracle = DetectionOracle(model, alone, own)
        assert torch.equal(oracle.value(float_images(alone, 'cpu'))[0], together[i])
        assert together[i] > 0 or index != 5  # no object, false boxes only


def test_square_does_damage_and_repeats(coco):
    model = _detector()
    batch, samples = _batch(coco, 1)
    images = float_images(batch, 'cpu')
    attack = Square(eps=16, num_queries=40)
    oracle = DetectionOracle(model, batch, samples)
    with loss_mode(model):
        first, second = (
            attack.perturb(oracle, images, torch.Generator().manual_seed(4))
            for _ in range(2)
        )
    assert torch.equal(first[0], second[0])
    assert oracle.forwards == 2 * 41
    assert oracle.value(first)[0] > oracle.value(images)[0]


def test_there_is_no_gradient(coco):
    batch, samples = _batch(coco, 1)
    oracle = DetectionOracle(_detector(), batch, samples)
    with pytest.raises(ConfigError, match='no gradient'):
        PGD().perturb(oracle, float_images(batch, 'cpu'), torch.Generator())


class Segmentor(nn.Module):
    """Gives out what it was made with."""

    def __init__(self, output):
        super().__init__()
        self.output = output
        self.data_preprocessor = lambda batch, training: dict(
            inputs=batch['inputs'], data_samples=batch['data_samples']
        )

    def _run_forward(self, data, mode):
        return self.forward(**data, mode=mode)

    def forward(self, inputs, data_samples, mode):
        assert mode == 'predict'
        assert not self.training
        assert 'gt_instances' not in data_samples[0]
        return [self.output]


def _masks_only():
    found = tiny.instances([[0, 0, 0, 0]], [0], [0.9])
    found.masks = torch.ones(1, 8, 8, dtype=torch.bool)
    return DetDataSample(pred_instances=found)


def _rotated():
    return DetDataSample(
        pred_instances=InstanceData(
            bboxes=torch.ones(1, 5), labels=torch.zeros(1).long(), scores=torch.ones(1)
        )
    )


@pytest.mark.parametrize(
    ('output', 'reason'),
    [
        (DetDataSample(), 'does not detect boxes'),
        (_masks_only(), 'does not detect boxes'),
        (_rotated(), 'have 5 numbers'),
    ],
)
def test_what_has_no_boxes_is_refused(output, reason):
    sample = DetDataSample(gt_instances=tiny.instances([BOX], [0]))
    oracle = DetectionOracle(
        Segmentor(output), dict(inputs=[torch.zeros(3, 8, 8)]), [sample]
    )
    with pytest.raises(ConfigError, match=reason):
        oracle.value([torch.zeros(3, 8, 8)])


def test_boxes_come_back_into_the_input_frame():
    # Resized to twice the width and three times the height.
    sample = DetDataSample(
        gt_instances=tiny.instances([[20, 30, 40, 60]], [0]),
        metainfo=dict(scale_factor=(2.0, 3.0), img_shape=(90, 60)),
    )
    output = DetDataSample(
        pred_instances=tiny.instances([[10, 10, 20, 20]], [0], [0.5])
    )
    oracle = DetectionOracle(
        Segmentor(output), dict(inputs=[torch.zeros(3, 90, 60)]), [sample]
    )
    (value,) = oracle.value([torch.zeros(3, 90, 60)])
    assert float(value) == pytest.approx(-0.5)
