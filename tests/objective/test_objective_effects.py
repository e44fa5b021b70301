"""What attacks aimed at something do to the final detections, compared with noise."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import stored
import tiny
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmrobust.attacks import attack_preset
from mmrobust.batch import attack_samples, float_images
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective, loss_mode
from mmrobust.registry import ATTACKS
from mmrobust.utils.seeding import seeded
from torch import Tensor

EPS = 16
CPU = torch.device('cpu')
FAMILIES = ['fcos', 'retinanet', 'faster_rcnn', 'detr']


class Trained:
    """A tiny detector that knows its three images, one of them with two classes."""

    def __init__(self, family: str, root: Path) -> None:
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
    def attacked(self, name: str, seed: int = 0, **settings: Any) -> tuple[Any, ...]:
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
    def detect(self, images: list[Tensor]) -> tuple[Any, ...]:
        samples = deepcopy(self.batch['data_samples'])
        found = self.model.test_step({'inputs': images, 'data_samples': samples})
        return tuple(sample.pred_instances for sample in found)

    def truth(self) -> list[Any]:
        """In the frame of the detections."""
        return [sample.gt_instances for sample in self.batch['data_samples']]

    def noise(self, figure: Callable[[Any], float]) -> list[float]:
        """A figure of the detections under each of three draws of noise."""
        return [figure(self.attacked('noise', seed)) for seed in range(3)]


@pytest.fixture(scope='module')
def trained(coco: Path) -> Callable[[str], Trained]:
    return cache(lambda family: Trained(family, coco))


def certainty(found: Any) -> float:
    """Summed scores."""
    return sum(float(instances.scores.sum()) for instances in found)


def boxes(found: Any) -> float:
    """Detections with a score worth showing."""
    return sum(int((instances.scores > 0.1).sum()) for instances in found)


def share(found: Any, label: int) -> float:
    """The part of the summed scores that a class has."""
    of_class = sum(float(i.scores[i.labels == label].sum()) for i in found)
    return of_class / max(certainty(found), 1e-9)


def on_objects(
    found: Any, truth: Any, right: bool | None = None, label: int | None = None
) -> float:
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


def state_of(samples: list[Any]) -> list[Any]:
    return [
        (
            s.gt_instances.bboxes.tensor.tolist(),
            s.gt_instances.labels.tolist(),
            s.keys(),
        )
        for s in samples
    ]


ALL_FAMILIES = pytest.mark.parametrize('family', FAMILIES)
TRAINED = pytest.mark.parametrize('family', FAMILIES[:-1])


@ALL_FAMILIES
def test_vanish_lowers_and_fabricate_raises_the_scores(trained, family):
    detector = trained(family)
    noise = detector.noise(certainty)
    assert certainty(detector.attacked('vanish')) < 0.7 * min(noise)
    assert certainty(detector.attacked('fabricate')) > 1.1 * max(noise)


@TRAINED
def test_vanish_leaves_fewer_boxes_and_fabricate_more(trained, family):
    detector = trained(family)
    noise = detector.noise(boxes)
    assert boxes(detector.attacked('vanish')) < min(noise)
    assert boxes(detector.attacked('fabricate')) > max(noise)


@TRAINED
@pytest.mark.parametrize('target', [None, 'next'])
def test_mislabel_changes_labels_in_the_same_places(trained, family, target):
    detector = trained(family)
    truth = detector.truth()
    found = detector.attacked('mislabel', target=target)
    right = detector.noise(lambda noisy: on_objects(noisy, truth, right=True))
    wrong = detector.noise(lambda noisy: on_objects(noisy, truth, right=False))
    assert on_objects(found, truth, right=True) < 0.75 * min(right)
    assert on_objects(found, truth, right=False) > max(wrong) + 0.5


@TRAINED
def test_targeted_makes_objects_the_class_that_is_asked_for(trained, family):
    detector = trained(family)
    truth = detector.truth()

    def taken(found: Any) -> float:
        return on_objects(found, truth, right=False, label=0)

    found = detector.attacked('targeted', target_class=0)
    assert taken(found) > max(detector.noise(taken)) + 0.5


def test_labels_of_a_transformer_change_too(trained):
    detector = trained('detr')
    squares = detector.noise(lambda noisy: share(noisy, 1))
    assert share(detector.attacked('targeted', target_class=1), 1) > max(squares) + 0.5
    stripes = detector.noise(lambda noisy: share(noisy, 2))  # nearly all objects
    assert share(detector.attacked('mislabel'), 2) < min(stripes) - 0.3
    assert share(detector.attacked('dag'), 2) < min(stripes) - 0.1


@TRAINED
@pytest.mark.parametrize('name', ['background', 'dag'])
def test_objects_are_no_longer_recognised(trained, family, name):
    detector = trained(family)
    truth = detector.truth()
    right = None if name == 'background' else True
    noise = detector.noise(lambda noisy: on_objects(noisy, truth, right))
    assert on_objects(detector.attacked(name), truth, right) < 0.5 * min(noise)


@TRAINED
def test_background_concerns_objects_only(trained, family):
    """Unlike vanish, which lowers every score."""
    detector = trained(family)
    assert certainty(detector.attacked('background')) > 2 * certainty(
        detector.attacked('vanish')
    )


def test_a_transformers_objects_become_background(trained):
    detector = trained('detr')
    noise = detector.noise(certainty)
    assert certainty(detector.attacked('background')) < 0.7 * min(noise)


@pytest.mark.parametrize(
    ('family', 'name'),
    [('fcos', 'objectness'), ('faster_rcnn', 'objectness'), ('faster_rcnn', 'rpn')],
)
def test_objectness_alone_already_hurts(trained, family, name):
    detector = trained(family)
    truth = detector.truth()
    noise = detector.noise(lambda noisy: on_objects(noisy, truth, right=True))
    assert on_objects(detector.attacked(name), truth, right=True) < 0.75 * min(noise)


@ALL_FAMILIES
@pytest.mark.parametrize('name', ['vanish', 'mislabel', 'dag'])
def test_the_evaluators_ground_truth_is_untouched(trained, family, name):
    detector = trained(family)
    judged, attacked = detector.batch['data_samples'], detector.samples
    before = state_of(judged), state_of(attacked)
    detector.attacked(name, seed=1)
    assert (state_of(judged), state_of(attacked)) == before
    assert before[0][1][1] == [2, 0]


@ALL_FAMILIES
@pytest.mark.parametrize(
    'name', ['vanish', 'mislabel', 'background', 'dag', 'fabricate']
)
def test_gradient_and_determinism(trained, family, name):
    """Against the difference of two values along the gradient."""
    detector = trained(family)
    objective = Objective(name)
    images = float_images(detector.batch, 'cpu')

    def fresh() -> LossOracle:
        return LossOracle(detector.model, detector.batch, detector.samples, objective)

    def value(oracle: LossOracle, shift: float) -> Tensor:
        with seeded(0, CPU):
            moved = [i + shift * d for i, d in zip(images, directions, strict=True)]
            return oracle.value(moved).double()

    with loss_mode(detector.model):
        oracle = fresh()
        with seeded(0, CPU):
            values, grads = oracle.value_and_grad(images)
        directions = [grad / grad.abs().max().clamp_min(1e-12) for grad in grads]
        assert torch.equal(value(oracle, 0.0).float(), values)
        assert torch.equal(value(fresh(), 0.0).float(), values)
        rises = [
            (value(oracle, step) - value(oracle, -step)) / (2 * step)
            for step in (0.02, 0.05, 0.12)
        ]
    if family == 'faster_rcnn':
        return  # its proposals are constants to the gradient, but move with the image
    slopes = torch.stack(
        [(g.double() * d).sum() for g, d in zip(grads, directions, strict=True)]
    )
    assert (slopes > 0).any()
    # A kink of the network or rounding may spoil a difference over one step.
    rise = torch.stack(rises).median(0).values
    torch.testing.assert_close(rise, slopes, rtol=0.1, atol=1e-3)


def test_a_class_is_found_by_its_name_in_the_loop(build_runner, monkeypatch):
    """From the names of the data; an unknown one stops before the benign pass."""
    monkeypatch.setattr(Config, 'pretty_text', property(str))

    def build(target_class: str) -> Any:
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
