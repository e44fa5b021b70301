"""The value of every named objective on mmdet's own heads, by hand, and its gradient.

By hand means: from the raw outputs of the head. For FCOS the head itself says which
point belongs to which object; for Faster R-CNN that is done here as well, and its
samplers are so large that they take everything.
"""

import pytest
import tiny
import torch
import torch.nn.functional as F
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.bbox import bbox2roi
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmrobust.batch import float_images
from mmrobust.frame import attack_samples
from mmrobust.objective import LossOracle, Objective, loss_mode
from mmrobust.objective.kinds import NAMED
from attacks.test_fidelity import Bound, fcos_terms, focal, network_input
from torch import nn

CLASSES, SCALE = 3, (144, 108)
WEIGHTS = torch.tensor([0.5, 0.7, 1.8])
NEXT = torch.tensor([1, 2, 0, 3])  # 3 is background
ALL_ONE = torch.tensor([1, 1, 1, 3])


class Case:
    """A detector with lively scores and two images with one and two objects."""

    def __init__(self, family, coco):
        torch.manual_seed(0)
        config = ConfigDict(tiny.FAMILIES[family]())
        if family == 'fcos':  # wide enough for logits that float32 tells apart
            config.backbone.base_channels = 8
            config.neck.in_channels = [16, 32, 64]
        else:
            for part in ('rpn', 'rcnn'):
                config.train_cfg[part].sampler.num = 10**6
        self.model = MODELS.build(config)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
        head = self.model.bbox_head if family == 'fcos' else self.model.roi_head
        scores = head.conv_cls if family == 'fcos' else head.bbox_head.fc_cls
        nn.init.normal_(scores.weight, std=0.5 if family == 'fcos' else 1)
        nn.init.zeros_(scores.bias)
        if family == 'faster_rcnn':  # or everything would be background
            scores.bias.data[:CLASSES] = torch.tensor([2.0, 2.0, 2.0])
        data = DATASETS.build(tiny.dataset(coco, True, scale=SCALE))
        self.batch = pseudo_collate([data[0], data[1]])
        # Even colours would tie in max-pooling, where differences are no gradient.
        self.batch['inputs'] = [
            (image.int() + torch.randint(-9, 10, image.shape)).clamp(0, 255).byte()
            for image in self.batch['inputs']
        ]
        self.samples = attack_samples(self.batch['data_samples'], 'cpu', 'original')
        self.images = float_images(self.batch, 'cpu')
        assert [len(s.gt_instances) for s in self.samples] == [1, 2]

    def oracle(self, objective):
        weights = WEIGHTS if objective == 'cwa' else None
        return LossOracle(
            self.model, self.batch, self.samples, Objective(objective, weights)
        )

    def by_hand(self, function, images):
        values = []
        with loss_mode(self.model), torch.no_grad():
            for image, sample in zip(images, self.samples, strict=True):
                x, own = network_input([image], [sample])
                own[0].gt_instances.bboxes = own[0].gt_instances.bboxes.tensor
                values.append(function(self.model, x, own[0]))
        return torch.stack(values)


def fcos_points(model, x, sample):
    """Logits and labels of all points."""
    maps = model.bbox_head(model.extract_feat(x))[0]
    points = model.bbox_head.prior_generator.grid_priors(
        [m.shape[2:] for m in maps], torch.float32, 'cpu'
    )
    labels, _ = model.bbox_head.get_targets(points, [sample.gt_instances])
    logits = torch.cat([m[0].flatten(1).T for m in maps])
    return logits, torch.cat(labels)


def fcos_term(number, weights=None):
    def term(model, x, sample):
        terms = fcos_terms(model, x, [sample], weights, Bound(None))
        return sum(terms) if number < 0 else terms[number]

    return term


def fcos_empty(sign):
    def value(model, x, sample):
        logits, labels = fcos_points(model, x, sample)
        return sign * focal(logits, torch.full_like(labels, CLASSES)).sum()

    return value


def fcos_relabelled(new):
    def value(model, x, sample):
        logits, labels = fcos_points(model, x, sample)
        table = likely(logits, labels) if new is None else new
        return -focal(logits, table[labels]).sum() / (labels < CLASSES).sum()

    return value


def likely(logits, labels):
    """The other class that objects of each class are taken for most."""
    table = NEXT.clone()
    for label in set(labels[labels < CLASSES].tolist()):
        chances = logits[labels == label].sigmoid().mean(0)
        chances[label] = -1
        table[label] = chances.argmax()
    return table


def fcos_background(model, x, sample):
    logits, labels = fcos_points(model, x, sample)
    return torch.log(1 - logits[labels < CLASSES].sigmoid()).sum()


def fcos_dag(model, x, sample):
    logits, labels = fcos_points(model, x, sample)
    right = [i for i, l in enumerate(labels) if l < CLASSES and logits[i].argmax() == l]
    rows = [logits[i, NEXT[labels[i]]] - logits[i, labels[i]] for i in right]
    assert 0 < len(right) < int((labels < CLASSES).sum())
    return sum(rows)


def rpn_losses(model, x, sample, objects=True):
    """Cross entropy and L1 of all anchors, which are assigned here."""
    features, head = model.extract_feat(x), model.rpn_head
    maps, deltas = head(features)
    anchors = torch.cat(
        head.prior_generator.grid_priors([m.shape[2:] for m in maps], device='cpu')
    )
    logits = torch.cat([m[0].permute(1, 2, 0).reshape(-1) for m in maps])
    found = torch.cat([m[0].permute(1, 2, 0).reshape(-1, 4) for m in deltas])
    boxes = sample.gt_instances.bboxes[: None if objects else 0]
    low = torch.max(anchors[:, None, :2], boxes[None, :, :2])
    high = torch.min(anchors[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clamp(min=0).prod(2)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (anchors, boxes)]
    overlaps = common / (areas[0][:, None] + areas[1][None] - common)
    cross, distance, positives, negatives = torch.zeros(()), torch.zeros(()), 0, 0
    for i, anchor in enumerate(anchors):
        best = int(overlaps[i].argmax()) if len(boxes) else -1
        overlap = float(overlaps[i].max()) if len(boxes) else 0.0
        chosen = best if overlap >= 0.7 else -1
        for j in range(len(boxes)):  # each object's best anchor, good or not
            if overlaps[i, j] == overlaps[:, j].max() >= 0.3:
                chosen = j
        if chosen < 0 and overlap >= 0.3:
            continue
        positives, negatives = positives + (chosen >= 0), negatives + (chosen < 0)
        cross = cross - F.logsigmoid(logits[i] if chosen >= 0 else -logits[i])
        if chosen >= 0:
            a, b = anchor, boxes[chosen]
            size = a[2:] - a[:2]
            shift = ((b[:2] + b[2:]) - (a[:2] + a[2:])) / 2 / size
            growth = torch.log((b[2:] - b[:2]) / size)
            distance = distance + (found[i] - torch.cat([shift, growth])).abs().sum()
    count = max(positives, 1) + negatives  # mmdet counts a positive where none is
    return cross / count, distance / count


def regions(model, x, sample, objects=True):
    """Logits and labels of the proposals, and of the objects themselves."""
    features, head = model.extract_feat(x), model.roi_head
    proposals = model.rpn_head.predict(features, [sample], rescale=False)[0].bboxes
    truth = sample.gt_instances[: None if objects else 0]
    boxes = truth.bboxes
    proposals = torch.cat([boxes, proposals])
    logits, _ = head.bbox_head(
        head.bbox_roi_extractor(features[:4], bbox2roi([proposals]))
    )
    labels = torch.full((len(proposals),), CLASSES)
    for i, a in enumerate(proposals):
        low, high = torch.max(a[:2], boxes[:, :2]), torch.min(a[2:], boxes[:, 2:])
        common = (high - low).clamp(min=0).prod(1)
        both = (a[2:] - a[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1)
        overlaps = common / (both - common)
        if len(boxes) and overlaps.max() >= 0.5:
            labels[i] = truth.labels[overlaps.argmax()]
    return logits, labels


def entropy(logits, labels):
    rows = torch.arange(len(labels))
    return (logits.logsumexp(1) - logits[rows, labels]).mean()


def rcnn_empty(sign):
    def value(model, x, sample):
        logits, labels = regions(model, x, sample, objects=False)
        total = entropy(logits, labels) + sum(rpn_losses(model, x, sample, False))
        return sign * total

    return value


def rcnn_relabelled(new):
    def value(model, x, sample):
        logits, labels = regions(model, x, sample)
        return -entropy(logits, new[labels])

    return value


def rcnn_background(model, x, sample):
    logits, labels = regions(model, x, sample)
    return logits.softmax(1)[labels < CLASSES, CLASSES].log().sum()


def rcnn_dag(model, x, sample):
    logits, labels = regions(model, x, sample)
    total = torch.zeros(())
    for row, label in zip(logits, labels, strict=True):
        if label < CLASSES and row.argmax() == label:
            total = total + row[NEXT[label]] - row[label]
    return total


MISLABEL, TARGETED = {'name': 'mislabel'}, {'name': 'targeted', 'target_class': 1}
TO_NEXT, DAG = {**MISLABEL, 'target': 'next'}, {'name': 'dag', 'target': 'next'}
VALUES = [
    ('fcos', 'total', fcos_term(-1)),
    ('fcos', 'cls', fcos_term(0)),
    ('fcos', 'reg', fcos_term(1)),
    ('fcos', 'cls+reg', lambda *a: fcos_term(0)(*a) + fcos_term(1)(*a)),
    ('fcos', 'cwa', lambda *a: fcos_term(0, WEIGHTS)(*a) + fcos_term(1)(*a)),
    ('fcos', 'vanish', fcos_empty(-1)),
    ('fcos', 'fabricate', fcos_empty(1)),
    ('fcos', MISLABEL, fcos_relabelled(None)),
    ('fcos', TO_NEXT, fcos_relabelled(NEXT)),
    ('fcos', TARGETED, fcos_relabelled(ALL_ONE)),
    ('fcos', 'background', fcos_background),
    ('fcos', DAG, fcos_dag),
    ('fcos', 'objectness', fcos_term(2)),
    ('faster_rcnn', 'rpn', lambda *a: sum(rpn_losses(*a))),
    ('faster_rcnn', 'objectness', lambda *a: rpn_losses(*a)[0]),
    ('faster_rcnn', 'cls', lambda *a: entropy(*regions(*a))),
    ('faster_rcnn', 'vanish', rcnn_empty(-1)),
    ('faster_rcnn', 'fabricate', rcnn_empty(1)),
    ('faster_rcnn', TO_NEXT, rcnn_relabelled(NEXT)),
    ('faster_rcnn', TARGETED, rcnn_relabelled(ALL_ONE)),
    ('faster_rcnn', 'background', rcnn_background),
    ('faster_rcnn', DAG, rcnn_dag),
]


def _name(value):
    if isinstance(value, dict):
        return '-'.join(str(part) for part in value.values())
    return value if isinstance(value, str) else ''


def test_no_objective_is_left_out():
    known = {_name(objective).split('-')[0] for _, objective, _ in VALUES}
    # Those in test_predictions.py and test_latency.py.
    assert known | {'ranking', 'latency'} == set(NAMED)


@pytest.mark.parametrize(('family', 'objective', 'function'), VALUES, ids=_name)
def test_value_by_hand_and_gradient_by_differences(coco, family, objective, function):
    case = Case(family, coco)
    with loss_mode(case.model):
        oracle = case.oracle(objective)
        values, grads = oracle.value_and_grad(case.images)
    wanted = case.by_hand(function, case.images)
    torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)
    assert wanted.abs().max() > 1e-3
    if family == 'faster_rcnn' and objective not in ('rpn', 'objectness'):
        return  # proposals move with the image, and are constants to the gradient
    # Every value moves by the step in the direction in which the objective rises: what
    # is left of the differences is curvature.
    step = 1 / 512
    with loss_mode(case.model):
        up, down = (
            oracle.value(
                [i + s * g.sign() for i, g in zip(case.images, grads, strict=True)]
            ).double()
            for s in (step, -step)
        )
    slopes = torch.stack([grad.double().abs().sum() for grad in grads])
    assert slopes.min() > 0
    torch.testing.assert_close((up - down) / (2 * step), slopes, rtol=0.03, atol=3e-4)
