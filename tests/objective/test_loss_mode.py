"""Losses in an attack: the mode of each module, and what losses remember."""

import pytest
import tiny
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from updates import make_batch, make_model

from mmrobust.objective.loss_mode import LossState, stays_in_eval
from mmrobust.objective import LossOracle, Objective, loss_mode
from benchmarks.synthetic import Drawing

CLASSES = 3


# ------------------------------------------------------------ modules nobody knows


class Flagged(nn.Module):
    """Gives other outputs in training, as heads of many projects do."""

    def forward(self, x):
        if self.training:
            return x, x, x
        return x.sigmoid(), x


class ByProperty(Flagged):
    @property
    def top(self):
        return 2000 if self.training else 1000


class WithNoise(Flagged):
    """Its base needs the flag, whatever else it does."""

    def loss(self, x):
        return F.dropout(x, 0.1, self.training)


class Both(nn.Module):
    """One function for noise and outputs."""

    def forward(self, x):
        x = F.dropout(x, 0.1, self.training)
        if self.training:
            return x, x, x
        return x, x.sigmoid()


class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


class DropsPaths(nn.Module):
    def forward(self, x):
        def keep():
            return x * torch.rand(len(x), 1).round() if self.training else x

        return keep()


class Shakes(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class Normalises(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(4))
        self.register_buffer('var', torch.ones(4))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, training=self.training)


class Quieter(nn.Dropout):
    """A class of torch's, under another name."""


@pytest.mark.parametrize('kind', [Flagged, ByProperty, WithNoise, Both])
def test_a_flag_that_decides_on_outputs_is_set(kind):
    model = nn.ModuleDict(dict(head=kind(), norm=nn.BatchNorm1d(4))).eval()
    with loss_mode(model):
        assert len(model.head(torch.zeros(2, 4))) == 3
        assert not model.norm.training
    assert len(model.head(torch.zeros(2, 4))) == 2


@pytest.mark.parametrize('kind', [Drops, DropsPaths, Shakes, Normalises, Quieter])
@pytest.mark.parametrize('training', [False, True])
def test_noise_and_statistics_are_those_of_the_deployed_function(kind, training):
    model = nn.ModuleDict(dict(part=kind(), head=Flagged())).train(training)
    x = torch.arange(8.0).reshape(2, 4)
    buffers = [buffer.clone() for buffer in model.buffers()]
    with loss_mode(model):
        assert torch.allclose(model.part(x), x, rtol=1e-4)
        assert len(model.head(x)) == 3
    assert all(map(torch.equal, buffers, model.buffers()))
    assert all(module.training is training for module in model.modules())


def test_a_teacher_stays_as_it_is_in_training():
    model = nn.ModuleDict(dict(teacher=Flagged(), student=Flagged()))
    model.teacher.eval()
    with loss_mode(model):
        assert not model.teacher.training
        assert model.student.training


def test_a_detector_of_torchvision():
    """Every part of it asks for the flag, and gives losses in training alone."""
    backbone = nn.Conv2d(3, 32, 3, stride=8, padding=1)
    backbone.out_channels = 32
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    model = FCOS(backbone, 2, anchor_generator=anchors).eval()
    image = torch.rand(3, 64, 64)
    target = dict(boxes=torch.tensor([[4.0, 4, 40, 40]]), labels=torch.tensor([1]))
    with loss_mode(model):
        losses = model([image], [target])
    assert losses.keys() == {'classification', 'bbox_regression', 'bbox_ctrness'}
    assert model([image])[0].keys() == {'boxes', 'scores', 'labels'}


def test_what_mmdet_has():
    """By their code; nobody lists them."""
    from mmcv.cnn.bricks import DropPath
    from mmdet.models import layers
    from mmdet.models.utils.vlfuse_helper import BiMultiHeadAttention

    for kind in (DropPath, layers.DropBlock, BiMultiHeadAttention):
        assert stays_in_eval(kind)
    for name in ('FCOSHead', 'VFNetHead', 'RepPointsHead', 'DINO', 'GridHead', 'FCOS'):
        assert not stays_in_eval(MODELS.get(name))
    assert stays_in_eval(MODELS.get('mmrobust.BoundedLoss'))


# ------------------------------------------------------------ what losses remember


class Head(nn.Module):
    """A classification loss in a model with a normalisation, and a list of counts."""

    def __init__(self, loss):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.loss_cls = MODELS.build(loss)
        self.counts = [0, 0.5]
        self.names = ['a']
        self.calls = 0

    def loss(self, scores, labels):
        self.counts[0] += 1
        self.names.append('b')
        self.calls += 1
        if 'GHM' in type(self.loss_cls).__name__:
            found = self.loss_cls(scores, labels, torch.ones_like(scores))
        else:
            found = self.loss_cls(scores, labels)
        if isinstance(found, dict):
            return sum(found.values())
        return found


def _case(name):
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 1, 3, 3, 2])
    settings = {
        'SeesawLoss': dict(num_classes=CLASSES),
        'GHMC': dict(bins=5, momentum=0.75, use_sigmoid=True),
        'EQLV2Loss': dict(num_classes=CLASSES, use_distributed=False),
    }
    width = {'SeesawLoss': CLASSES + 2, 'GHMC': CLASSES, 'EQLV2Loss': CLASSES + 1}
    scores = torch.randn(len(labels), width[name], generator=generator)
    if name == 'GHMC':
        labels = (torch.rand(scores.shape, generator=generator) > 0.5).long()
    return Head(dict(type=name, **settings[name])), scores, labels


@pytest.mark.parametrize('name', ['SeesawLoss', 'GHMC', 'EQLV2Loss'])
def test_a_loss_that_remembers_gives_its_first_value_again(name):
    head, scores, labels = _case(name)
    head.loss(scores, labels)  # a past, other than the initial state
    state = {k: v.clone() for k, v in head.state_dict().items()}
    buffers = dict(head.named_buffers())
    memory = LossState(head)
    first = head.loss(scores, labels)
    # Without this the test would say nothing: it does remember.
    assert any(not torch.equal(v, state[k]) for k, v in head.state_dict().items())
    for _ in range(3):
        memory.restore()
        assert torch.equal(head.loss(scores, labels), first)
    memory.restore()
    assert all(torch.equal(v, state[k]) for k, v in head.state_dict().items())
    assert all(v is buffers[k] for k, v in head.named_buffers())


def test_plain_counts_are_restored_and_nothing_else():
    head, scores, labels = _case('SeesawLoss')
    memory = LossState(head)
    for _ in range(2):
        head.loss(scores, labels)
        head.loss(scores, labels)
        head.norm(torch.randn(5, 4))
        memory.restore()
        assert head.counts == [0, 0.5]
        assert head.calls == 0
    head.train(False)
    memory.restore()
    assert not head.training
    assert head.names == ['a', 'b', 'b', 'b', 'b']
    assert head.norm.num_batches_tracked == 2


class Average(nn.Module):
    """Writes past torch's count of writes."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(2))


def test_only_buffers_that_were_written_to_are_copied_unless_asked(monkeypatch):
    head, other = nn.ModuleList([Average(), Average()])
    memory = LossState(nn.ModuleList([head, other]))
    copies, original = [], Tensor.copy_
    monkeypatch.setattr(
        Tensor,
        'copy_',
        lambda self, *args: copies.append(self) or original(self, *args),
    )
    memory.restore()
    assert not copies
    head.mean.add_(1)
    memory.restore()
    memory.restore()
    assert len(copies) == 1
    assert head.mean.tolist() == [0, 0]
    other.mean.data.add_(1)
    memory.restore()
    assert other.mean.tolist() == [1, 1]
    memory.restore(thorough=True)
    assert other.mean.tolist() == [0, 0]


def test_buffers_of_inference_mode_are_restored_too():
    with torch.inference_mode():
        module = Average()
        memory = LossState(module)
        module.mean.add_(1)
        memory.restore()
    assert module.mean.tolist() == [0, 0]


def test_dynamic_rcnn_does_not_learn_thresholds_from_an_attack():
    config = tiny.faster_rcnn()
    config['roi_head']['type'] = 'DynamicRoIHead'
    loss = dict(type='SmoothL1Loss', beta=1.0)
    config['roi_head']['bbox_head']['loss_bbox'] = loss
    config['train_cfg']['rcnn']['dynamic_rcnn'] = dict(
        iou_topk=5,
        beta_topk=2,
        update_iter_interval=2,
        initial_iou=0.05,
        initial_beta=1.0,
    )
    model = MODELS.build(ConfigDict(config))
    head = model.roi_head

    def learned():
        assigner = head.bbox_assigner
        return assigner.pos_iou_thr, head.bbox_head.loss_bbox.beta, head.iou_history

    drawing = Drawing(96, 96, len(tiny.CLASSES), seed=0)
    batch = dict(inputs=[drawing.image], data_samples=[drawing.sample()])
    before = learned()
    images = [drawing.image.float()]
    with loss_mode(model):
        oracle = LossOracle(model, batch, batch['data_samples'], Objective())
        for _ in range(3):
            oracle.value(images)
        assert len(head.iou_history) == 1  # of the last call, and of no other
    assert learned() == before == (0.5, 1.0, [])


def test_what_was_written_by_others_does_not_break_a_gradient():
    """Trials and attacks take turns, and each puts back all buffers at its end."""
    model = make_model(tiny.fcos()).eval()
    batch = make_batch([(64, 96)], 0)
    images = [image.float() for image in batch['inputs']]
    with loss_mode(model):
        oracle = LossOracle(model, batch, batch['data_samples'], Objective('total'))
        for _ in range(2):
            LossState(model).restore(thorough=True)
            _, (grad,) = oracle.value_and_grad(images)
            assert grad.abs().sum() > 0


# ------------------------------------------------------------ how far a training is


def test_losses_that_ask_how_far_training_is():
    """TOOD and BoxInst do, and a test knows of no epoch; a training keeps its own."""
    hub = MessageHub.get_instance('losses-that-ask')
    model = make_model()
    with loss_mode(model):
        assert hub.get_info('epoch') > 1000
        assert hub.get_info('iter') > 100_000
    assert hub.get_info('epoch') is hub.get_info('iter') is None
    hub.update_info('epoch', 3)
    with loss_mode(model):
        assert hub.get_info('epoch') == 3
    assert hub.get_info('epoch') == 3
