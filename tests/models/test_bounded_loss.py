"""The bounded loss, element by element, against its definition in plain numbers."""

from copy import deepcopy

import pytest
import tiny
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmrobust.objective.class_weights import weighted_classification_loss
from mmrobust.errors import ConfigError
from mmrobust.objective import loss_mode
from mmrobust.registry import MODELS
from updates import make_batch, make_model
from torch import nn


def build(loss, **settings):
    init_default_scope('mmdet')
    return MODELS.build(dict(type='mmrobust.BoundedLoss', loss=loss, **settings))


def test_large_elements_have_the_bound_as_value_and_a_smaller_gradient():
    """L1: gradient 1 per element, of the element 8 scaled by 6 / 8."""
    loss = build('L1Loss', bound=6.0)
    pred = torch.tensor([[8.0, 2, -12, 6]], requires_grad=True)
    target = torch.zeros(1, 4)
    elements = loss(pred, target, reduction_override='none')
    assert elements.tolist() == [[6, 2, 6, 6]]
    total = loss(pred, target, avg_factor=2.0)
    assert float(total) == pytest.approx(20 / 2)
    (grad,) = torch.autograd.grad(total, pred)
    torch.testing.assert_close(grad, torch.tensor([[6 / 8, 1, -6 / 12, 1]]) / 2)


def test_rows_are_bounded_by_their_sum():
    """The four coordinates of a box; the first row sums to 12, the second to 5."""
    loss = build('L1Loss', bound=6.0, per='row')
    pred = torch.tensor([[8.0, 2, -1, 1], [2, 1, 1, 1]])
    total = loss(pred, torch.zeros(2, 4), avg_factor=1.0)
    assert float(total) == pytest.approx(6 + 5)


def test_cross_entropy_of_a_sampled_region():
    loss = build('CrossEntropyLoss', bound=6.0, use_sigmoid=False, loss_weight=2.0)
    logits = torch.tensor([[0.0, 10.0], [0.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    weight = torch.tensor([1.0, 1.0])
    exact = 2 * torch.log(1 + torch.tensor([10.0, 1.0]).exp())
    total = loss(logits, labels, weight, avg_factor=2)
    assert float(exact[0]) > 6 > float(exact[1])
    assert float(total) == pytest.approx((6 + float(exact[1])) / 2, rel=1e-6)
    (grad,) = torch.autograd.grad(total, logits)
    p = torch.sigmoid(torch.tensor([10.0, 1.0]))
    factor = torch.tensor([6 / float(exact[0]), 1.0])
    torch.testing.assert_close(grad[:, 1], 2 * p * factor / 2)


def test_heads_find_what_they_ask_a_loss_for():
    loss = build('CrossEntropyLoss', use_sigmoid=True, class_weight=[1.0, 2.0])
    assert loss.use_sigmoid is True
    assert loss.class_weight == [1.0, 2.0]
    assert not hasattr(loss, 'custom_activation')
    assert list(loss.state_dict()) == []  # nothing new in a checkpoint


def bounded_fcos(bound):
    config = tiny.fcos()
    config['bbox_head']['loss_cls'] = dict(
        type='mmrobust.BoundedLoss',
        loss='FocalLoss',
        bound=bound,
        use_sigmoid=True,
        gamma=2.0,
        alpha=0.25,
        loss_weight=1.0,
    )
    return config


def test_in_a_detector_it_acts_in_training_alone():
    """An attack sees the bare loss, which the bound would weaken."""
    batch = make_batch([(64, 96), (80, 64)], 0)
    plain = make_model(tiny.fcos())
    bounded = make_model(ConfigDict(bounded_fcos(1e-4)))
    bounded.load_state_dict(plain.state_dict())

    def loss_cls(model):
        data = model.data_preprocessor(deepcopy(batch), False)
        return float(model(**data, mode='loss')['loss_cls'].detach())

    assert loss_cls(bounded) < 0.5 * loss_cls(plain)
    with loss_mode(plain):
        reference = loss_cls(plain)
    with loss_mode(bounded):
        assert loss_cls(bounded) == reference
    wide = make_model(ConfigDict(bounded_fcos(1e4)))
    wide.load_state_dict(plain.state_dict())
    assert loss_cls(wide) == pytest.approx(loss_cls(plain), rel=1e-5)


def test_class_weights_and_the_bound_together():
    """A_cwa on a bounded model: weighted, and in eval mode not bounded."""

    class Head(nn.Module):
        num_classes = 3

        def __init__(self):
            super().__init__()
            self.loss_cls = build('CrossEntropyLoss', bound=0.5, use_sigmoid=False)

    head = Head().eval()
    logits, labels = torch.zeros(2, 4), torch.tensor([0, 2])
    weights = torch.tensor([0.5, 1.0, 1.5])
    with weighted_classification_loss(head, weights):
        loss = head.loss_cls(logits, labels, avg_factor=1.0)
        head.train()
        bounded = head.loss_cls(logits, labels, avg_factor=1.0)
    assert float(loss) == pytest.approx(2 * float(torch.tensor(4.0).log()), rel=1e-5)
    assert float(bounded) == pytest.approx(2 * 0.5, rel=1e-5)


@pytest.mark.parametrize('bound', [0, -1, float('inf'), float('nan'), 'x'])
def test_an_impossible_bound_is_refused(bound):
    with pytest.raises(ConfigError, match='must be a finite number above 0'):
        build('L1Loss', bound=bound)


def test_an_unknown_grouping_is_refused():
    with pytest.raises(ConfigError, match="choose 'element' or 'row'"):
        build('L1Loss', per='box')
