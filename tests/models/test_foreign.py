"""Detectors of other libraries, and black boxes, behind mmdet's interface."""

import re
from pathlib import Path

import mmrobust
import pytest
import stored
import tiny
import torch
from evaluated import attack_of
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmrobust.errors import ConfigError
from mmrobust.models import ForeignDetector
from mmrobust.objective import LossOracle, Objective, loss_mode
from torch import nn

ATTACKS = dict(
    noise=dict(type='mmrobust.RandomNoise', eps=4),
    pgd=dict(type='mmrobust.PGD', eps=4, num_steps=2),
    square=dict(type='mmrobust.Square', eps=8, num_queries=5),
)
NOTHING = dict(bboxes=[], labels=[])


class Wrapped(nn.Module):
    """The stored FCOS, as a library of its own would offer it."""

    def __init__(self):
        super().__init__()
        self.net = stored.detector('fcos')

    def ready(self, images, targets=None):
        own = self.net.data_preprocessor
        (image,) = ((each - own.mean) / own.std for each in images)
        height, width = image.shape[1:]
        image = nn.functional.pad(image, (0, -width % 32, 0, -height % 32))
        shapes = dict(img_shape=(height, width), batch_input_shape=image.shape[1:])
        sample = DetDataSample(metainfo=shapes)
        for target in targets or ():
            labels = target['labels'].tolist()
            sample.gt_instances = tiny.instances(target['boxes'].tolist(), labels)
        return image[None], [sample]

    def predict(self, images):
        found = self.net.predict(*self.ready(images), rescale=False)
        instances = [each.pred_instances for each in found]
        return [
            dict(boxes=each.bboxes, labels=each.labels, scores=each.scores)
            for each in instances
        ]

    def loss(self, images, targets):
        return self.net.loss(*self.ready(images, targets))


@pytest.fixture(scope='module', autouse=True)
def _registered():
    MODELS.register_module(name='WrappedFCOS', module=Wrapped)
    yield
    MODELS.module_dict.pop('WrappedFCOS')


def figures(report):
    names = ('benign', *ATTACKS)
    entries = [report['benign'], *(attack_of(report, name) for name in ATTACKS)]
    return {n: e['metrics'] for n, e in zip(names, entries, strict=True)}


def test_figures_are_those_of_the_detector_itself(evaluate, coco, tmp_path):
    """Without attack, with gradients, and with queries."""
    expected = figures(evaluate(ATTACKS, num_images=4))
    assert expected['pgd'] != expected['benign'] != expected['square']
    model = ForeignDetector(dict(type='WrappedFCOS'))
    model.cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    report = mmrobust.evaluate(
        model, attacks=ATTACKS, num_images=4, work_dir=tmp_path / 'x'
    )
    assert figures(report.content) == expected


def test_a_black_box(coco, tmp_path):
    """Any callable; without losses only attacks that need no gradient."""
    net = Wrapped()
    model = ForeignDetector(net.predict)
    model.cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    picture = str(coco / 'images' / '000.png')
    target = dict(bboxes=[[10, 10, 40, 40]], labels=[0])
    known = ForeignDetector(net)
    known.cfg = model.cfg
    settings = dict(attack='square', num_steps=5, targets=target)
    (found,) = mmrobust.attack(model, picture, **settings)
    (other,) = mmrobust.attack(known, picture, **settings)
    assert torch.equal(found.adversarial, other.adversarial)
    with pytest.raises(ConfigError, match='is a black box, without losses'):
        mmrobust.attack(model, picture, attack='pgd', targets=target)


def test_a_network_in_onnx_has_the_modules_figures(evaluate, coco, tmp_path):
    """As docs/python.md tells: onnxruntime's maps, decoded by the head."""
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    net = Wrapped()
    head = net.net.bbox_head

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net.net

        def forward(self, images):
            found = head(self.net.extract_feat(images))
            return [level for kind in found for level in kind]

    path = tmp_path / 'fcos.onnx'
    torch.onnx.export(
        Maps().eval(),
        (torch.rand(1, 3, 64, 96),),
        str(path),
        input_names=['x'],
        dynamic_axes={'x': {2: 'height', 3: 'width'}},
        dynamo=False,  # which needs fewer packages
    )
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])

    def detect(images):
        image, (sample,) = net.ready(images)
        maps = [torch.from_numpy(m) for m in session.run(None, {'x': image.numpy()})]
        levels = len(maps) // 3
        kinds = (maps[i : i + levels] for i in range(0, len(maps), levels))
        (found,) = head.predict_by_feat(
            *kinds, batch_img_metas=[sample.metainfo], rescale=False
        )
        return [dict(boxes=found.bboxes, labels=found.labels, scores=found.scores)]

    attacks = {name: ATTACKS[name] for name in ('noise', 'square')}
    settings = dict(check_images=0, gallery=0)
    expected = evaluate(attacks, num_images=2, **settings)
    model = ForeignDetector(detect)
    model.cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    report = mmrobust.evaluate(
        model, attacks=attacks, num_images=2, work_dir=tmp_path / 'x', settings=settings
    )
    assert expected['benign']['metrics'] != attack_of(expected, 'square')['metrics']
    assert report.benign == expected['benign']['metrics']
    for name in attacks:
        assert report.attacks[name]['metrics'] == attack_of(expected, name)['metrics']


def test_what_cannot_predict():
    with pytest.raises(ConfigError, match='a int cannot predict'):
        ForeignDetector(3)


@pytest.mark.parametrize(
    ('predict', 'sentence'),
    [
        (lambda images: [], 'predictions for 0 of 1 images'),
        (lambda images: [dict(boxes=[])], 'a dict of boxes for an image'),
        (lambda images: [3], 'gave a int for an image'),
    ],
)
def test_predictions_of_another_form(predict, sentence, coco, tmp_path):
    model = ForeignDetector(predict)
    model.cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    picture = str(coco / 'images' / '000.png')
    with pytest.raises(ConfigError, match=sentence):
        mmrobust.attack(model, picture, attack='noise', targets=NOTHING)


def test_torchvisions_detector_as_documented(coco, tmp_path):
    """Predictions are torchvision's own, losses those of its training."""
    page = (Path(__file__).parents[2] / 'docs' / 'python.md').read_text()
    (code,) = (
        c for c in re.findall(r'```python\n(.*?)```', page, re.S) if 'self.net' in c
    )
    names = {}
    exec(code, names)
    try:
        settings = dict(weights=None, weights_backbone=None, num_classes=4)
        settings.update(min_size=64, max_size=64, box_detections_per_img=5)
        name = 'fasterrcnn_mobilenet_v3_large_320_fpn'
        model = ForeignDetector(dict(type='Torchvision', name=name, **settings)).eval()
    finally:
        MODELS.module_dict.pop('Torchvision')
    net = model.detector.net
    picture = torch.randint(0, 256, (3, 64, 96)).float()
    batch = dict(inputs=[picture], data_samples=[DetDataSample()])
    batch['data_samples'][0].set_metainfo(dict(img_shape=(64, 96), scale_factor=(2, 1)))
    (found,) = model.test_step(batch)
    (expected,) = net([picture.flip(0) / 255])
    wide = expected['boxes'] / torch.tensor([2, 1, 2, 1])
    assert torch.equal(found.pred_instances.bboxes, wide)
    assert torch.equal(found.pred_instances.labels, expected['labels'] - 1)
    truth = batch['data_samples'][0]
    truth.gt_instances = tiny.instances([[8, 8, 40, 40]], [2])
    with loss_mode(model):
        torch.manual_seed(0)  # of the samplers
        oracle = LossOracle(model, batch, [truth], Objective())
        (value,), (grad,) = oracle.value_and_grad([picture])
        torch.manual_seed(0)
        leaf = picture.clone().requires_grad_()
        target = dict(boxes=truth.gt_instances.bboxes, labels=torch.tensor([3]))
        loss = sum(net([leaf.flip(0) / 255], [target]).values())
    (wanted,) = torch.autograd.grad(loss, leaf)
    assert value == loss.detach()
    assert torch.equal(grad, wanted)
    assert grad.abs().max() > 0
