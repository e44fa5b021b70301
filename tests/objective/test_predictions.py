"""The objective ranking: by hand, by a second implementation, on real detectors."""

import math
from contextlib import ExitStack
from copy import deepcopy
from functools import partial

import pytest
import stored
import tiny
import torch
from mmdet.models.roi_heads.bbox_heads import MultiInstanceBBoxHead
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import InstanceData
from torch import nn

from mmrobust.attacks import PGD
from benchmarks.families import config_root, tiny_model
from benchmarks.synthetic import tiny_batch
from mmrobust.batch import float_images, split_batch
from mmrobust.errors import ConfigError
from mmrobust.frame import attack_samples
from mmrobust.geometry import Affine
from mmrobust.objective import LossOracle, Objective, loss_mode, make_oracle
from mmrobust.objective.detections import in_input_frame, without_truth
from mmrobust.objective.predictions import PredictionOracle, unsuppressed, ranking
from mmrobust.objective.scores import outranked, ranking_of_assigned
from mmrobust.utils.models import replaced

BOX, HALF, NEAR, FAR = [0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 8], [50, 50, 60, 60]


def logit(score):
    return math.log(score / (1 - score))


def lead(true, false):
    return 3 * math.log1p(math.exp((true - false) / 3))


LEAST = logit(1e-6)


@pytest.mark.parametrize(
    ('predicted', 'truth', 'expected'),
    [
        # An object and a false box: IoU 1 counts as much as 6 of a logit.
        (
            ([BOX, FAR], [0, 0], [0.9, 0.2]),
            ([BOX], [0]),
            -lead(logit(0.9) + 6, logit(0.2)),
        ),
        # Two predictions of it, of IoU 0.8 and 0.5, and one of another class.
        (
            ([NEAR, HALF, BOX], [0, 0, 1], [0.5, 0.5, 0.7]),
            ([BOX], [0]),
            -lead(math.log(math.exp(4.8) + math.exp(3)), logit(0.7)),
        ),
        # One object is missed: it counts as found with a score of 1e-6.
        (
            ([BOX, [100, 0, 110, 10]], [0, 0], [0.9, 0.2]),
            ([BOX, FAR], [0, 0]),
            -(lead(logit(0.9) + 6, logit(0.2)) + lead(LEAST, logit(0.2))) / 2,
        ),
        # Nothing to find: false ones are to be surer. Nothing false: only less sure.
        (([BOX, FAR], [0, 1], [0.9, 0.2]), ([], []), (logit(0.9) + logit(0.2)) / 2),
        (([BOX], [0], [0.9]), ([BOX], [0]), -logit(0.9) - 6),
        (([], [], []), ([], []), 0),
        # The 20 highest of false ones.
        (
            ([BOX] + [FAR] * 30, [0] * 31, [0.9] + [0.3] * 20 + [0.1] * 10),
            ([BOX], [0]),
            -lead(logit(0.9) + 6, logit(0.3)),
        ),
    ],
)
def test_ranking_by_hand(predicted, truth, expected):
    value = ranking(tiny.instances(*predicted), tiny.instances(*truth))
    # What nothing is predicted of adds e^LEAST to the sum of the others.
    assert float(value) == pytest.approx(expected, abs=1e-4)


def test_predictions_in_a_crowd_are_not_false():
    predicted = tiny.instances([BOX, BOX], [0, 1], [0.8, 0.5])
    crowd = tiny.instances([[0, 0, 100, 100]], [0])
    # The other class has no crowd there.
    value = ranking(predicted, tiny.instances([], []), crowd)
    assert float(value) == pytest.approx(logit(0.5), abs=1e-5)


def test_no_score_is_too_sure_or_too_unlikely_for_a_finite_gradient():
    predicted = tiny.instances([BOX, BOX, FAR], [0, 0, 0], [1.0, 1e-38, 0.0])
    predicted.scores.requires_grad_()
    ranking(predicted, tiny.instances([BOX], [0])).backward()
    assert predicted.scores.grad.isfinite().all()


def test_no_more_predictions_are_asked_for_than_queries_give():
    """CO-DETR suppresses, and takes the highest of its scores by their number."""
    head = nn.Module()
    head.num_query, head.num_classes = 9, 3
    head.test_cfg = ConfigDict(max_per_img=300, nms=dict(type='soft_nms'))
    for sigmoid, most in ((True, 27), (False, 9)):
        head.loss_cls = nn.Module()
        head.loss_cls.use_sigmoid = sigmoid
        ((_, _, cfg),) = unsuppressed(head, max_per_img=5000)
        assert (cfg.nms, cfg.max_per_img) == (None, most)


def test_crowddet_keeps_what_overlaps():
    """It suppresses by a function of its own, which asks for an overlap."""
    head = nn.Module()
    head.test_cfg = ConfigDict(nms=dict(iou_threshold=0.5), score_thr=0.01)
    head.bbox_head = nn.Module()
    head.bbox_head.set_nms = MultiInstanceBBoxHead.set_nms
    ((_, _, cfg),) = unsuppressed(head)
    # Coordinates, and the region that a box is from.
    boxes = torch.tensor([[*BOX, 0], [*BOX, 1], [*NEAR, 2], [*FAR, 3]]).float()
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for overlap, kept in ((0.5, 2), (cfg.nms['iou_threshold'], 4)):
        found, _ = head.bbox_head.set_nms(boxes, scores, 0.0, overlap, 100)
        assert len(found) == kept


def test_scores_that_are_nearly_one_keep_a_gradient():
    logits = torch.tensor([14.5, 15.0], requires_grad=True)
    predicted = tiny.instances([BOX, FAR], [0, 0], [1.0, 1.0])
    predicted.scores = logits.sigmoid()
    ranking(predicted, tiny.instances([BOX], [0])).backward()
    assert logits.grad[0] < 0 < logits.grad[1]


def test_gradients_are_the_slope_of_scores_and_boxes():
    truth = tiny.instances([BOX, FAR], [0, 1])

    def value(scores, boxes):
        labels = torch.tensor([0, 0, 1, 1])
        return ranking(InstanceData(bboxes=boxes, scores=scores, labels=labels), truth)

    scores = torch.tensor([0.7, 0.4, 0.2, 0.6], requires_grad=True)
    boxes = torch.tensor([NEAR, HALF, FAR, BOX], dtype=torch.float32)
    boxes = (boxes + torch.tensor([0.0, 0.0, 0.3, 0.4])).requires_grad_()
    value(scores, boxes).backward()
    assert scores.grad[:3].lt(0).all()
    assert scores.grad[3] > 0
    with torch.no_grad():
        for given, step in ((scores, 1e-3), (boxes, 1e-2)):
            for place in range(given.numel()):
                shift = torch.zeros(given.numel())
                shift[place] = step
                shift = shift.view_as(given)
                pair = [
                    value(scores + s * shift, boxes)
                    if given is scores
                    else value(scores, boxes + s * shift)
                    for s in (1, -1)
                ]
                slope = float(pair[0] - pair[1]) / (2 * step)
                wanted = float(given.grad.flatten()[place])
                assert slope == pytest.approx(wanted, rel=0.02, abs=2e-3)


def test_class_scores_of_assigned_predictions_by_hand():
    labels = torch.tensor([0, 2, 2])  # the first stands for an object of 2 classes
    sigmoid = torch.tensor([[3.0, 1.0], [0.5, -4.0], [-1.0, -2.0]])
    false = [1.0, 0.5, -4.0, -1.0, -2.0]
    expected = -sum(lead(3.0, each) for each in false) / 5
    (value,) = ranking_of_assigned(sigmoid, labels, 2)
    assert float(value) == pytest.approx(expected, abs=1e-5)
    # The same odds, by a softmax with a column for background.
    chances = sigmoid[:1].sigmoid() / 2
    softmax = torch.cat([chances, 1 - chances.sum(1, keepdim=True)], 1).log()
    odds = [logit(float(each)) for each in chances[0]]
    (value,) = ranking_of_assigned(softmax, labels[:1], 2)
    assert float(value) == pytest.approx(-lead(*odds), abs=1e-5)


def _batch(coco, indices=(1,), scale=(144, 108)):
    data = DATASETS.build(tiny.dataset(coco, True, scale=scale))
    batch = pseudo_collate([data[index] for index in indices])
    return batch, attack_samples(batch['data_samples'], 'cpu', 'original')


def test_it_reads_what_a_head_gives_before_suppression(coco):
    """By a second implementation of FCOS's predictions, from its raw outputs."""
    model = stored.detector('fcos')
    batch, samples = _batch(coco)
    images, (sample,) = float_images(batch, 'cpu'), samples
    oracle = PredictionOracle(model, batch, samples, Objective('ranking'))
    with loss_mode(model):
        (value,) = oracle.value(images)
    data = model.data_preprocessor({**batch, 'inputs': images}, False)
    with torch.no_grad():
        outputs = model(data['inputs'], mode='tensor')
    sizes = [level.shape[-2:] for level in outputs[0]]
    points = model.bbox_head.prior_generator.grid_priors(sizes, device='cpu')
    coder, found = DistancePointBBoxCoder(), []
    for scores, boxes, centers, places in zip(*outputs, points, strict=True):
        scores, boxes, centers = (
            each[0].flatten(1).T for each in (scores, boxes, centers)
        )
        chances = (scores.sigmoid() * centers.sigmoid()).flatten()
        boxes = coder.decode(places, boxes, max_shape=sample.img_shape)
        count = scores.shape[1]
        labels = torch.arange(count).repeat(len(boxes))
        boxes = boxes.repeat_interleave(count, 0)
        found.append(InstanceData(bboxes=boxes, scores=chances, labels=labels))
    expected = ranking(InstanceData.cat(found), sample.gt_instances)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)


FAMILIES = ['fcos', 'retinanet', 'faster_rcnn', 'mask_rcnn', 'detr', 'dn_detr', 'dino']


@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_pass_the_prediction_of_every_family(coco, family):
    torch.manual_seed(0)
    model = tiny.filled(MODELS.build(ConfigDict(tiny.FAMILIES[family]()))).eval()
    batch, samples = _batch(coco)
    images = float_images(batch, 'cpu')
    oracle = make_oracle(model, batch, samples, Objective('ranking'))
    assert isinstance(oracle, PredictionOracle)
    configs = [m.test_cfg for m in model.modules() if hasattr(m, 'test_cfg')]
    with loss_mode(model):
        flags = [module.training for module in model.modules()]
        values, (grad,) = oracle.value_and_grad(images)
        assert flags == [module.training for module in model.modules()]
        # Nothing is left of one question in the next.
        assert torch.equal(oracle.value(images), values)
        found = PGD(eps=8, num_steps=3, objective='ranking').perturb(
            oracle, images, torch.Generator().manual_seed(0)
        )
        assert oracle.value(found) > values
    assert grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.parameters())
    now = [m.test_cfg for m in model.modules() if hasattr(m, 'test_cfg')]
    assert all(a is b for a, b in zip(configs, now, strict=True))


def test_the_slope_is_the_difference_of_values(coco):
    model = stored.detector('retinanet').double()
    model.data_preprocessor.double()
    batch, samples = _batch(coco, (0,))
    images = [image.double() for image in float_images(batch, 'cpu')]
    oracle = PredictionOracle(model, batch, samples, Objective('ranking'))
    oracle._inputs[(0,)] = lambda images, truth: dict(
        inputs=((images[0].flip(0) - model.data_preprocessor.mean)
                / model.data_preprocessor.std)[None],
        data_samples=[DetDataSample(metainfo=samples[0].metainfo)],
    )  # fmt: skip
    with loss_mode(model):
        _, (grad,) = oracle.value_and_grad(images)
        step = 0.05 * grad.sign()
        up, down = (oracle.value([images[0] + s * step]) for s in (1, -1))
    slope = float(up - down) / 2 / float(0.05 * grad.abs().sum())
    assert slope == pytest.approx(1, abs=0.1)


def test_images_of_a_batch_share_the_mean_in_training(coco):
    model = stored.detector('fcos')
    batch, samples = _batch(coco, (0, 3))
    images = float_images(batch, 'cpu')
    with loss_mode(model):
        build = partial(PredictionOracle, model, batch, samples, Objective('ranking'))
        each, mean = build().value(images), build(per_image=False).value(images)
    assert mean.shape == (1,)
    assert float(mean) == pytest.approx(float(each.mean()), rel=1e-4)


def test_boxes_of_a_letterbox_come_back_to_the_input():
    sample = DetDataSample(metainfo=dict(scale_factor=(0.5, 0.5)))
    sample.set_metainfo(dict(to_input=Affine.scaling(0.5, 0.5)))
    sample.to_input.shift[:] = 3, 20
    found = tiny.instances([[10, 20, 30, 60]], [0], [0.5])
    found.bboxes.requires_grad_()
    moved = in_input_frame(found, sample).bboxes
    assert moved.tolist() == [[8, 30, 18, 50]]
    moved.sum().backward()
    assert found.bboxes.grad.tolist() == [[0.5] * 4]


def test_predictions_get_all_of_a_sample_but_the_truth():
    sample = DetDataSample(
        metainfo=dict(img_id=3),
        gt_instances=tiny.instances([BOX], [0]),
        ignored_instances=tiny.instances([FAR], [0]),
        proposals=tiny.instances([NEAR], [0]),
    )
    sample.set_field(torch.ones(2), 'depth')
    shown = without_truth(sample)
    assert set(shown.keys()) == {'proposals', 'depth'}
    assert shown.img_id == 3
    assert shown.proposals is not sample.proposals


def test_without_predictions_it_reads_the_losses_scores(coco):
    model = stored.detector('fcos')
    batch, samples = _batch(coco)
    objective = Objective('ranking')
    objective.without_predictions()
    assert objective.name == 'ranking(assigned)'
    oracle = make_oracle(model, batch, samples, objective)
    assert type(oracle) is LossOracle
    with loss_mode(model):
        value, (grad,) = oracle.value_and_grad(float_images(batch, 'cpu'))
    data = model.data_preprocessor({**batch, 'data_samples': samples}, False)
    seen = []
    hook = model.bbox_head.loss_cls.register_forward_pre_hook(
        lambda module, given: seen.append(given)
    )
    with torch.no_grad():
        model(**data, mode='loss')
    hook.remove()
    ((scores, labels), *_) = [given[:2] for given in seen]
    true = torch.nn.functional.one_hot(labels, 4)[:, :3].bool()
    expected = outranked(scores[true], scores[~true])
    assert float(value[0]) == pytest.approx(float(expected), rel=1e-4)
    assert grad.abs().sum() > 0


def test_gradients_made_of_detach_stay_what_they_are(coco):
    """A step with the identity's gradient, in front of the backbone."""
    model = stored.detector('fcos')
    batch, samples = _batch(coco)
    images = float_images(batch, 'cpu')
    extract = model.extract_feat

    def rounded(inputs):
        return extract(inputs + ((inputs * 8).round() / 8 - inputs).detach())

    model.extract_feat = rounded
    with loss_mode(model):
        oracle = PredictionOracle(model, batch, samples, Objective('ranking'))
        _, (grad,) = oracle.value_and_grad(images)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('config', 'changed'),
    [
        ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', 'predict'),
        ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', '_bbox_mask_post_process'),
        ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', None),
    ],
)
def test_boxes_are_read_without_the_masks_of_all_of_them(config, changed):
    config = Config.fromfile(config_root() / config)
    config.model.test_cfg.score_thr = 0.0  # nothing has been learnt
    torch.manual_seed(0)
    model = tiny.filled(MODELS.build(tiny_model(config)))
    model = revert_sync_batchnorm(model).eval()
    batch = tiny_batch(config, config.model)
    (batch, _) = split_batch(batch)
    batch['data_samples'][0].set_metainfo(dict(scale_factor=(0.5, 0.8)))
    # What stands in for masks leaves the boxes that are deployed as they are.
    swaps = [each for each in unsuppressed(model) if each[1] != 'test_cfg']
    assert [each[1] for each in swaps] == ([changed] if changed else [])
    with torch.no_grad():
        (stock,) = model.test_step(deepcopy(batch))
        with ExitStack() as stack:
            for swap in swaps:
                stack.enter_context(replaced(*swap))
            (bare,) = model.test_step(deepcopy(batch))
    assert len(stock.pred_instances) > 5
    assert 'masks' in stock.pred_instances
    assert ('masks' in bare.pred_instances) == (changed is None)
    for key in ('bboxes', 'scores', 'labels'):
        mine, theirs = (each.pred_instances[key] for each in (bare, stock))
        assert torch.equal(mine, theirs)
    samples = attack_samples(batch['data_samples'], 'cpu', 'input')
    with loss_mode(model):
        oracle = make_oracle(model, batch, samples, Objective('ranking'))
        _, (grad,) = oracle.value_and_grad(float_images(batch, 'cpu'))
    assert grad.abs().sum() > 0


def test_masks_alone_are_refused(coco):
    """SOLO: the ensemble then reads class scores, see preparation.py."""
    model = stored.detector('fcos')
    model.add_module('mask_head', torch.nn.Identity())
    del model.bbox_head
    batch, samples = _batch(coco)
    with pytest.raises(ConfigError, match='predicts masks alone'):
        make_oracle(model, batch, samples, Objective('ranking'))
