"""The class weights of A_cwa, against computations by hand."""

import pytest
import tiny
import torch
from mmdet.models.losses import CrossEntropyLoss, FocalLoss
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from objective.test_objective import _batch, _model
from torch import nn

from mmrobust.batch import float_images
from mmrobust.objective.class_weights import class_weights, weighted_classification_loss
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective, loss_mode


def test_weights_by_hand():
    # Shares 1/2, 1/4, 1/4: inverses 2, 4, 4 with mean 10/3; the absent class has 1.
    weights = class_weights([4, 2, 2, 0])
    torch.testing.assert_close(weights, torch.tensor([0.6, 1.2, 1.2, 1.0]))
    assert class_weights([0, 0]).tolist() == [1, 1]


class Head(nn.Module):
    """A head as far as the weighting looks at it."""

    def __init__(self, loss, num_classes=3):
        super().__init__()
        self.loss_cls, self.num_classes = loss, num_classes


WEIGHTS = torch.tensor([0.5, 1.0, 1.5])


def test_focal_loss_is_weighted_by_column():
    head = Head(FocalLoss(use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0))
    logits = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, -2.0]])
    labels = torch.tensor([2, 3])  # 3 is background: a negative for every class
    with weighted_classification_loss(head, WEIGHTS):
        loss = head.loss_cls(logits, labels, avg_factor=4.0)
    p = logits.sigmoid()
    one = torch.tensor([[0.0, 0, 1], [0, 0, 0]])
    by_hand = -(
        0.25 * (1 - p) ** 2 * p.log() * one + 0.75 * p**2 * (1 - p).log() * (1 - one)
    )
    torch.testing.assert_close(loss, 2.0 * (by_hand * WEIGHTS).sum() / 4.0)
    # The hooks are gone.
    torch.testing.assert_close(
        head.loss_cls(logits, labels, avg_factor=4.0), 2.0 * by_hand.sum() / 4.0
    )


def test_cross_entropy_is_weighted_by_the_class_of_the_target():
    head = Head(CrossEntropyLoss(use_sigmoid=False))
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 3, 1])
    share = torch.tensor([1.0, 0.5, 1.0, 0.0])  # label weights by the sampler
    with weighted_classification_loss(head, WEIGHTS):
        loss = head.loss_cls(logits, labels, share, avg_factor=2.0)
    single = -logits.log_softmax(1)[torch.arange(4), labels]
    by_class = torch.tensor([0.5, 1.5, 1.0, 1.0])  # background has weight 1
    torch.testing.assert_close(loss, (single * share * by_class).sum() / 2.0)


@pytest.mark.parametrize('family', ['fcos', 'faster_rcnn', 'retinanet', 'dab_detr'])
def test_weights_of_one_change_nothing(coco, family):
    model = _model(family)
    batch, samples = _batch(coco, family)
    values = []
    for objective in (
        Objective(['loss_cls', 'loss_bbox']),
        Objective('cwa', torch.ones(len(tiny.CLASSES))),
        Objective('cwa', torch.tensor([0.1, 0.2, 2.7])),
    ):
        with loss_mode(model):
            torch.manual_seed(0)
            oracle = LossOracle(model, batch, samples, objective)
            values.append(oracle.value(float_images(batch, 'cpu')))
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(values[0], values[2], rtol=1e-3)


def test_a_head_that_cannot_be_weighted_is_refused():
    model = MODELS.build(ConfigDict(tiny.fcos()))
    with pytest.raises(ConfigError, match='5 classes'):
        with weighted_classification_loss(model, torch.ones(5)):
            pass
