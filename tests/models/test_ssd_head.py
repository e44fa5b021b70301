"""SSD: mmdet's losses, a prediction, and class weights by hand."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmrobust.batch import float_images
from mmrobust.objective.class_weights import weighted_classification_loss
from mmrobust.objective import LossOracle, Objective, loss_mode
from torch.nn import functional as F
from updates import make_batch

CONFIG = Path(__file__).parents[2] / 'configs/robust_ssd300_voc.py'


@pytest.fixture(scope='module')
def models():
    """SSD300 with our head and with mmdet's, of equal weights."""
    init_default_scope('mmdet')
    model = Config.fromfile(CONFIG).model
    model.backbone.init_cfg = None
    ours = MODELS.build(model)
    ours.init_weights()  # the scales of mmdet's L2Norm are whatever lay in memory
    model.bbox_head.type = 'SSDHead'
    theirs = MODELS.build(model)
    theirs.load_state_dict(ours.state_dict())  # the same keys
    return ours, theirs


def test_losses_are_mmdets_and_it_predicts(models):
    ours, theirs = models
    batch = make_batch([(300, 300)], 0)
    images = float_images(batch, 'cpu')
    values = []
    for model in (ours, theirs):
        with loss_mode(model):
            oracle = LossOracle(model, batch, batch['data_samples'], Objective('cls'))
            values.append(float(oracle.value(images)))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    with torch.no_grad():
        (result,) = ours.eval().test_step(batch)
    assert result.pred_instances.bboxes.shape[1] == 4


def test_class_weights_reach_the_objects(models):
    """Two objects of classes 0 and 3, two pieces of background, all of them counted."""
    head = models[0].bbox_head
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 21, generator=generator)
    labels = torch.tensor([0, 3, 20, 20])
    weights = torch.ones(20)
    weights[0], weights[3] = 0.5, 3.0
    zero, ones = torch.zeros(4, 4), torch.ones(4)
    arguments = (scores, zero, zero, labels, ones, zero, zero, 2)
    single = F.cross_entropy(scores, labels, reduction='none')
    plain, _ = head.loss_by_feat_single(*arguments)
    torch.testing.assert_close(plain, single.sum()[None] / 2)
    with weighted_classification_loss(models[0], weights):
        weighted, _ = head.loss_by_feat_single(*arguments)
    expected = 0.5 * single[0] + 3.0 * single[1] + single[2] + single[3]
    torch.testing.assert_close(weighted, expected[None] / 2)
