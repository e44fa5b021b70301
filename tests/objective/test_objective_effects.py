"""What attacks aimed at something do to the final detections, compared with noise."""

from copy import deepcopy
from functools import cache

import pytest
import stored
import tiny
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmrobust.attacks import attack_preset
from mmrobust.batch import float_images
from mmrobust.frame import attack_samples
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, loss_mode
from mmrobust.registry import ATTACKS
from mmrobust.utils.seeding import seeded

EPS = 16
CPU = torch.device('cpu')


class Trained:
    """A tiny detector that knows its three images, one of them with two classes."""

    def __init__(self, family, root):
        dataset = DATASETS.build(tiny.dataset(root, test=True))
        self.batch = pseudo_collate([dataset[i] for i in range(3)])
        self.samples = attack_samples(self.batch['data_samples'], 'cpu', 'original')
        if family == 'detr':
            # Too large to be stored; a fresh one has scores that depend on the image.
            torch.manual_seed(0)
            config = ConfigDict(tiny.FAMILIES[family]())
            self.model = tiny.filled(MODELS.build(config)).eval()
        else:
            self.model = stored.detector(family)

    @cache  # noqa: B019  (lives as long as the module's tests)
    def attacked(self, name, seed=0, **settings):
        """Final detections on the attacked images."""
        attack = ATTACKS.build(attack_preset(name, eps=EPS, num_steps=10, **settings))
        with loss_mode(self.model), seeded(0, CPU):
            oracle = LossOracle(self.model, self.batch, self.samples, attack.objective)
            generator = torch.Generator().manual_seed(seed)
            images = attack.perturb(oracle, float_images(self.batch, 'cpu'), generator)
        for image, clean in zip(images, self.batch['inputs'], strict=True):
            assert (image - clean).abs().max() <= EPS
        return self.detect(images)

    @torch.no_grad()
    def detect(self, images):
        samples = deepcopy(self.batch['data_samples'])
        found = self.model.test_step({'inputs': images, 'data_samples': samples})
        return tuple(sample.pred_instances for sample in found)

    def truth(self):
        """In the frame of the detections."""
        return [sample.gt_instances for sample in self.batch['data_samples']]


@pytest.fixture(scope='module')
def trained(coco):
    return cache(lambda family: Trained(family, coco))


def certainty(found, truth=None):
    """Summed scores."""
    return sum(float(instances.scores.sum()) for instances in found)


def boxes(found, truth):
    """Detections with a score worth showing."""
    return sum(int((instances.scores > 0.1).sum()) for instances in found)


def share(found, label):
    """The part of the summed scores that a class has."""
    of_class = sum(float(i.scores[i.labels == label].sum()) for i in found)
    return of_class / max(certainty(found), 1e-9)


def on_objects(found, truth, right=None, label=None):
    """Summed best scores on each object, of its own class, of another, or of one."""
    total = 0.0
    for instances, objects in zip(found, truth, strict=True):
        if not len(instances):
            continue
        overlaps = bbox_overlaps(objects.bboxes.tensor, instances.bboxes)
        good = overlaps > 0.4
        if right is not None:
            same = objects.labels[:, None] == instances.labels[None]
            good = good & (same == right)
        if label is not None:
            good = good & (instances.labels == label)
        scores = torch.where(good, instances.scores, torch.zeros(()))
        total += float(scores.max(1).values.sum())
    return total


LEARNT, RETINA, DETR = ('fcos', 'faster_rcnn'), ('retinanet',), ('detr',)


def right(found, truth):
    return on_objects(found, truth, right=True)


def wrong(found, truth):
    return on_objects(found, truth, right=False)


def as_class_0(found, truth):
    return on_objects(found, truth, right=False, label=0)


def squares(found, truth):
    return share(found, 1)


def stripes(found, truth):
    """The class of nearly all objects for the DETR."""
    return share(found, 2)


# What an attack does to a figure: below a share of the least that noise leaves of it
# (plus a number), or above a multiple of the largest.
TO_NEXT, TO_0, TO_1 = dict(target='next'), dict(target_class=0), dict(target_class=1)
EFFECTS = [
    (LEARNT + RETINA + DETR, 'vanish', {}, certainty, '<', 0.7, 0),
    (LEARNT + RETINA + DETR, 'fabricate', {}, certainty, '>', 1.1, 0),
    (LEARNT, 'vanish', {}, boxes, '<', 1, 0),
    (LEARNT, 'fabricate', {}, boxes, '>', 1, 0),
    (LEARNT + RETINA, 'mislabel', {}, right, '<', 0.75, 0),
    (LEARNT + RETINA, 'mislabel', {}, wrong, '>', 1, 0.5),
    (LEARNT, 'mislabel', TO_NEXT, right, '<', 0.75, 0),
    (LEARNT, 'mislabel', TO_NEXT, wrong, '>', 1, 0.5),
    (LEARNT, 'targeted', TO_0, as_class_0, '>', 1, 0.5),
    (LEARNT, 'background', {}, on_objects, '<', 0.5, 0),
    (LEARNT + RETINA, 'dag', {}, right, '<', 0.5, 0),
    (LEARNT, 'objectness', {}, right, '<', 0.75, 0),
    (('faster_rcnn',), 'rpn', {}, right, '<', 0.75, 0),
    (DETR, 'targeted', TO_1, squares, '>', 1, 0.5),
    (DETR, 'mislabel', {}, stripes, '<', 1, -0.15),
    (DETR, 'dag', {}, stripes, '<', 1, -0.1),
    (DETR, 'background', {}, certainty, '<', 0.7, 0),
]


@pytest.mark.parametrize(
    ('family', 'row'), [(family, row) for row in EFFECTS for family in row[0]]
)
def test_attacks_move_the_detections_where_they_aim(trained, family, row):
    detector = trained(family)
    _, name, settings, figure, side, factor, more = row
    truth = detector.truth()
    noise = [figure(detector.attacked('noise', seed), truth) for seed in range(3)]
    found = figure(detector.attacked(name, **settings), truth)
    if side == '<':
        assert found < factor * min(noise) + more
    else:
        assert found > factor * max(noise) + more


@pytest.mark.parametrize('family', LEARNT)
def test_background_concerns_objects_only(trained, family):
    """Unlike vanish, which lowers every score."""
    detector = trained(family)
    background, vanish = map(detector.attacked, ('background', 'vanish'))
    assert certainty(background) > 2 * certainty(vanish)


def test_a_class_is_found_by_its_name_in_the_loop(build_runner, monkeypatch):
    """From the names of the data; an unknown one stops before the benign pass."""
    monkeypatch.setattr(Config, 'pretty_text', property(str))

    def build(target_class):
        attacks = {
            'targeted': attack_preset(
                'targeted', num_steps=1, target_class=target_class
            ),
            'vanish': attack_preset('vanish', num_steps=1),
        }
        loop = dict(type='mmrobust.AttackTestLoop', attacks=attacks, num_images=2)
        return build_runner(test_cfg=loop)

    runner = build('square')
    metrics = runner.test()
    assert 'targeted/coco/bbox_mAP' in metrics
    assert 'vanish/coco/bbox_mAP' in metrics
    objective = runner.test_loop.attacks['targeted'].objective
    assert objective.targets(runner.model).tolist() == [1, 1, 1]
    runner = build('circle')
    monkeypatch.setattr(runner.model, 'test_step', None)
    with pytest.raises(ConfigError, match='choose from disc, square, stripe'):
        runner.test()
