"""Objectives aimed at something, against computations by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmdet.models.losses import CrossEntropyLoss, FocalLoss
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from mmrobust.objective.classifier import make_oracle
from mmrobust.training import FreeAdversary, PGDAdversary
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective
from mmrobust.objective.scores import (
    class_scores,
    log_background,
    margin,
    measured,
)
from mmrobust.objective.ground_truth import likely_classes, relabelled, without_objects
from torch import nn

CLASSES = 3


class Linear(nn.Module):
    """A detector of four predictions, linear in two pixels, of which the first ones
    belong to the objects in their order.
    """

    def __init__(self, softmax, **loss):
        super().__init__()
        self.bbox_head = nn.Module()
        self.bbox_head.num_classes = CLASSES
        self.bbox_head.loss_cls = (
            CrossEntropyLoss(**loss) if softmax else FocalLoss(**loss)
        )
        columns = CLASSES + 1 if softmax else CLASSES
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(4, columns, 2, generator=generator))
        self.seen = []

    def data_preprocessor(self, batch, training):
        return {'inputs': batch['inputs'], 'data_samples': batch['data_samples']}

    def scores(self, image):
        return self.weight @ (image.flatten() / 10)

    def _run_forward(self, data, mode):
        return self(**data, mode=mode)  # as mmengine's models

    def forward(self, inputs, data_samples, mode):
        torch.rand(1)  # as a random sampler does
        scores = self.scores(inputs[0])
        self.seen = data_samples
        labels = torch.full((4,), CLASSES)
        own = data_samples[0].gt_instances.labels
        labels[: len(own)] = own
        positive = scores[: len(own)]
        return {
            'loss_cls': self.bbox_head.loss_cls(scores, labels, avg_factor=4.0),
            'loss_bbox': positive.square().sum(),
            'loss_centerness': 2 * positive.sum(),
            'loss_rpn_cls': 5 * scores[0, 0],
            'loss_rpn_bbox': 7 * scores[0, 1],
            'loss_semantic_seg': 100 * scores[1, 1],
        }


def sample(*labels):
    instances = InstanceData(
        bboxes=torch.rand(len(labels), 4), labels=torch.tensor(labels).long()
    )
    return DetDataSample(gt_instances=instances, metainfo={'img_shape': (1, 2)})


def softmax_model():
    return Linear(True)


def focal_model():
    return Linear(False, use_sigmoid=True, gamma=2.0, alpha=0.25)


MODELS = (softmax_model, focal_model)
IMAGE = torch.tensor([[[12.0, -7.0]]])


def value(model, truth, objective, image=IMAGE):
    batch = {'inputs': [IMAGE], 'data_samples': [truth]}
    oracle = LossOracle(model, batch, [truth], Objective(objective))
    values, grads = oracle.value_and_grad([image])
    assert torch.equal(oracle.value([image]), values)
    return float(values[0]), grads[0]


@pytest.mark.parametrize('build', MODELS)
@pytest.mark.parametrize('least', [False, True])
def test_likely_labels_are_those_of_the_clean_image(build, least):
    model = build()
    truth = sample(2, 2, 0)
    chances = []
    for row in model.scores(IMAGE).tolist():
        if len(row) > CLASSES:
            total = sum(math.exp(s) for s in row)
            chances.append([math.exp(s) / total for s in row])
        else:
            chances.append([1 / (1 + math.exp(-s)) for s in row])
    pick = min if least else max
    # Averaged over both objects of class 2.
    of_two = pick((0, 1), key=lambda c: chances[0][c] + chances[1][c])
    of_zero = pick((1, 2), key=lambda c: chances[2][c])
    target = 'least-likely' if least else 'most-likely'
    objective = {'name': 'mislabel', 'target': target}
    # The same targets on another image, for which the hand would choose others.
    for image in (IMAGE, -IMAGE):
        value(model, truth, objective, image)
        assert model.seen[0].gt_instances.labels.tolist() == [of_two, of_two, of_zero]


@pytest.mark.parametrize('build', MODELS)
def test_objectives_of_an_image_without_objects(build):
    model, scores = build(), build().scores(IMAGE)
    # Boxes have no loss without objects, and semantic segmentation's does not count.
    background = torch.full((4,), CLASSES)
    empty = model.bbox_head.loss_cls(scores, background, avg_factor=4.0)
    empty = float(empty + 5 * scores[0, 0] + 7 * scores[0, 1])
    for truth in (sample(2, 0), sample()):
        assert value(model, truth, 'vanish')[0] == pytest.approx(-empty, rel=1e-5)
        assert value(model, truth, 'fabricate')[0] == pytest.approx(empty, rel=1e-5)
    # What is about objects raises false detections where there is none.
    wanted, gradient = value(model, sample(), 'fabricate')
    for objective in ('background', 'mislabel', {'name': 'dag', 'target': 'next'}):
        found, grad = value(model, sample(), objective)
        assert found == wanted
        assert torch.equal(grad, gradient)


def test_choosing_likely_labels_costs_one_pass_and_no_randomness():
    model = softmax_model()
    truth = sample(2)
    batch = {'inputs': [IMAGE], 'data_samples': [truth]}
    oracle = LossOracle(model, batch, [truth], Objective('mislabel'))
    states = []
    for draw in (lambda: torch.rand(1), lambda: oracle.value([IMAGE])) * 2:
        torch.manual_seed(1)
        draw()
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)
    assert (oracle.forwards, oracle.backwards) == (3, 0)


def test_terms_of_rpn_and_objectness():
    model = softmax_model()
    scores = model.scores(IMAGE)
    rpn = 5 * float(scores[0, 0]) + 7 * float(scores[0, 1])
    assert value(model, sample(1), 'rpn')[0] == pytest.approx(rpn, rel=1e-5)
    objectness = 5 * float(scores[0, 0]) + 2 * float(scores[0].sum())
    assert value(model, sample(1), 'objectness')[0] == pytest.approx(
        objectness, rel=1e-5
    )
    names = ['loss_cls', 'loss_bbox', 'loss_iou', 'd0.loss_cls']
    losses = dict.fromkeys(names, torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r'no region proposal network: .*d0.loss_cls'):
        Objective('rpn').select(losses)
    with pytest.raises(ConfigError, match='no objectness or centerness'):
        Objective('objectness').select(losses)
    names = ['rpn_loss_cls', 'rpn_loss_centerness', 's1.loss_rpn_cls', 'loss_conf']
    losses |= dict.fromkeys([*names, 'loss_obj', 's0.loss_rpn_bbox'], torch.tensor(1.0))
    assert Objective('objectness').select(losses) == [*names, 'loss_obj']


def test_the_given_ground_truth_stays_as_it_is():
    truth = sample(2, 0)
    truth.ignored_instances = InstanceData(bboxes=torch.rand(1, 4))
    boxes = truth.gt_instances.bboxes.clone()
    empty = without_objects(truth)
    other = relabelled(truth, torch.tensor([1, 2, 0]))
    assert len(empty.gt_instances) == 0
    assert empty.gt_instances.bboxes.shape == (0, 4)
    assert len(empty.ignored_instances) == 1
    assert empty.img_shape == (1, 2)
    assert other.gt_instances.labels.tolist() == [0, 1]
    assert torch.equal(other.gt_instances.bboxes, boxes)
    assert truth.gt_instances.labels.tolist() == [2, 0]
    assert torch.equal(truth.gt_instances.bboxes, boxes)


def test_likely_classes_of_classes_without_predictions_are_the_next_ones():
    scores = torch.tensor([[0.9, 0.2, 0.3], [0, 0, 0], [0.5, 0.1, 0.8]])
    assert likely_classes(scores, least=False).tolist() == [2, 2, 0]
    assert likely_classes(scores, least=True).tolist() == [1, 2, 1]


def test_measures_without_a_prediction():
    nothing, labels = torch.zeros(0, CLASSES), torch.zeros(0).long()
    targets = torch.tensor([1, 2, 0])
    assert log_background(nothing, labels, CLASSES).sum() == 0
    assert margin(nothing, labels, CLASSES, targets).sum() == 0
    assert class_scores(nothing, labels, CLASSES).sum(0).shape == (CLASSES, CLASSES)


def _first_column(scores, labels, num_classes):
    return scores[:, 0] + 100 * labels


@pytest.mark.parametrize(
    ('target', 'weight'),
    [
        (torch.tensor([2, 3, 1]), torch.tensor([1.0, 1.0, 0.0])),
        ((torch.tensor([2, 3, 3]), torch.tensor([0.4, 0, 0])), None),
        (torch.tensor([[0, 0, 0.3], [0, 0, 0], [0, 0, 0]]), None),
        (
            torch.tensor([[0, 0, 1.0], [0, 1.0, 0], [0, 0, 0]]),
            torch.tensor([[1], [0], [1]]),
        ),
    ],
)
def test_targets_are_understood_in_every_form(target, weight):
    """Labels with ignored ones, labels with qualities, and rows of qualities."""

    class Loss(nn.Module):
        reduction = 'mean'

        def forward(self, pred, target, weight=None, avg_factor=None):
            return pred.sum()

    model = nn.Module()
    model.head = nn.Module()
    model.head.num_classes, model.head.loss_cls = CLASSES, Loss()
    scores = torch.arange(9.0).reshape(3, 3) + 5
    for shape in ((3, 3), (1, 3, 3)):  # YOLOv3 keeps its images apart
        if shape == (1, 3, 3) and (isinstance(target, tuple) or target.dim() < 2):
            continue
        seen = (
            target
            if isinstance(target, tuple)
            else target.reshape(shape if target.dim() > 1 else -1)
        )
        with measured(model, _first_column):
            found = model.head.loss_cls(scores.reshape(shape), seen, weight=weight)
        assert found == 5 + 200
    assert model.head.loss_cls(scores, target) == scores.sum()  # the hook is gone


def test_a_loss_that_is_not_reduced_stays_so():
    """YOLACT picks from the elements itself."""
    model = Linear(True, reduction='none')
    scores, labels = model.scores(IMAGE), torch.tensor([3, 1, 3, 0])
    with measured(model, _first_column):
        found = model.bbox_head.loss_cls(scores, labels)
    by_hand = torch.stack([scores[1, 0] + 100, scores[3, 0]])
    torch.testing.assert_close(found[[1, 3]], by_hand)
    assert found[[0, 2]].tolist() == [0, 0]
    with (
        pytest.raises(ConfigError, match="set target='next'"),
        measured(model, class_scores),
    ):
        model.bbox_head.loss_cls(scores, labels)


@pytest.mark.parametrize('kind', ['SSDHead', 'mmrobust.SSDHead'])
def test_ssd_is_read_and_its_negatives_are_all_counted(kind):
    """SSD computes its classification loss without a module, on mined negatives."""
    head = MMDET_MODELS.build(
        ConfigDict(
            type=kind,
            num_classes=CLASSES,
            in_channels=(4,),
            anchor_generator=dict(
                type='SSDAnchorGenerator',
                scale_major=False,
                input_size=32,
                basesize_ratio_range=(0.2, 0.9),
                strides=[8],
                ratios=[[2]],
                min_sizes=[8],
                max_sizes=[16],
            ),
            train_cfg=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5),
                sampler=dict(type='PseudoSampler'),
                neg_pos_ratio=3,
                smoothl1_beta=1.0,
            ),
        )
    )
    model = nn.Module()
    model.bbox_head = head
    scores = torch.randn(5, CLASSES + 1)
    zero, ones = torch.zeros(5, 4), torch.ones(5)

    def loss(*labels):
        labels_ = torch.tensor(labels)
        arguments = (scores, zero, zero, labels_, ones, zero, zero)
        value, boxes = head.loss_by_feat_single(*arguments, avg_factor=2)
        assert boxes == 0
        return float(value)

    background = -scores.log_softmax(1)[:, 3]
    assert loss(3, 3, 3, 3, 3) == 0  # why SSD needs this
    with Objective('vanish').attached(model):
        assert loss(3, 3, 3, 3, 3) == pytest.approx(float(background.sum()), rel=1e-5)
    with Objective('background').attached(model):
        by_hand = -float(background[1] + background[4])
        assert loss(3, 0, 3, 3, 2) == pytest.approx(by_hand, rel=1e-5)
    assert loss(3, 3, 3, 3, 3) == 0


def test_heads_that_cannot_be_read_are_refused():
    model = softmax_model()
    model.bbox_head.loss_cls = nn.Identity()
    del model.bbox_head.loss_cls
    with pytest.raises(ConfigError, match='Linear has no such head'):
        value(model, sample(1), 'background')
    model = Linear(True, reduction='none')
    model.bbox_head.num_classes = 7
    with pytest.raises(ConfigError, match=r'scores of shape \(4, 4\) for 7 classes'):
        value(model, sample(1), 'background')

    class ByElement(Linear):
        def forward(self, inputs, data_samples, mode):
            losses = self.bbox_head.loss_cls(
                self.scores(inputs[0]), torch.full((4,), 1), reduction_override='none'
            )
            return {'loss_cls': losses.sum()}

    with pytest.raises(ConfigError, match=r'sums them in its own way.*whole losses'):
        value(ByElement(True), sample(1), 'background')
    with pytest.raises(ConfigError, match=r"in its own way.*target='next'"):
        value(ByElement(True), sample(1), 'mislabel')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'name': 'vanish', 'target': 'next'}, "'vanish' has no target"),
        ({'name': 'mislabel', 'target': 'worst'}, 'most-likely, least-likely, next'),
        ({'name': 'mislabel', 'target_class': 1}, 'use targeted'),
        ({'name': 'targeted'}, 'needs the class'),
        ({'name': 'dag', 'target': 'next', 'target_class': 1}, 'exclude each other'),
        ({'name': 'vanish', 'eps': 4}, "unknown setting 'eps'"),
        ({'name': 'vansh'}, 'vanish, fabricate, mislabel, targeted, background, dag'),
    ],
)
def test_impossible_objectives(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Objective(arguments)


def test_a_target_class_by_name_or_number():
    model = softmax_model()
    objective = Objective('targeted', target_class='cat')
    assert objective.name == 'targeted(cat)'
    with pytest.raises(ConfigError, match=r"'cat': the names .* give its number"):
        objective.targets(model)
    objective.class_names = ('dog', 'bird', 'cow')
    with pytest.raises(ConfigError, match='choose from dog, bird, cow'):
        objective.targets(model)
    objective.class_names = ('dog', 'cat', 'cow')
    assert objective.targets(model).tolist() == [1, 1, 1]
    for number in (2, '2'):
        assert Objective('dag', target_class=number).targets(model).tolist() == [2] * 3
    with pytest.raises(ConfigError, match='classes 0 to 2'):
        Objective('targeted', target_class=3).targets(model)


def test_one_class_cannot_be_mislabelled():
    model = softmax_model()
    model.bbox_head.num_classes = 1
    with pytest.raises(ConfigError, match='one only: use vanish or background'):
        Objective('mislabel').targets(model)


def test_training_refuses_objectives_that_it_cannot_follow():
    """FreeAT has one backward pass for weights and perturbation; 'cwa' has a name."""
    with pytest.raises(ConfigError, match="'vanish' needs losses of its own"):
        FreeAdversary(objective='vanish')
    PGDAdversary(objective='vanish')
    for adversary in (FreeAdversary, PGDAdversary):
        with pytest.raises(ConfigError, match="'cwa' is an attack for evaluation"):
            adversary(objective='cwa')
        adversary(objective='rpn')


def test_classifiers_refuse_objectives_of_detectors(monkeypatch):
    monkeypatch.setattr(
        'mmrobust.objective.classifier.is_classifier', lambda model: True
    )
    with pytest.raises(ConfigError, match="'vanish' is for detectors"):
        make_oracle(SimpleNamespace(), {}, [], Objective('vanish'))
