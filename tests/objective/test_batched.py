"""Images that share the network's passes get what they get alone."""

import pytest
import tiny
import torch
from mmdet.models import FCOS
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from mmrobust.attacks import APGD, PGD
from mmrobust.batch import split_batch
from mmrobust.utils.acceleration import Acceleration
from mmrobust.objective import (
    LossOracle,
    NotStackedError,
    Objective,
    StackedOracle,
    find_seams,
    loss_mode,
)
from mmrobust.utils.seeding import Draws, attack_generator, seeded
from benchmarks.synthetic import Drawing

CPU = torch.device('cpu')
SEEDS = [5, 6, 7]
HEADS = {
    'fcos': ['bbox_head'],
    'faster_rcnn': ['rpn_head'],
    'dino': [],  # whose denoising queries are drawn
}


class Case:
    """A model and three images, two of which are padded to the third's shape."""

    def __init__(self, family, sizes=None):
        torch.manual_seed(0)
        config = family if isinstance(family, dict) else tiny.FAMILIES[family]()
        self.model = tiny.filled(MODELS.build(ConfigDict(config)))
        sizes = sizes or [(96, 128), (90, 100), (66, 128)]
        if family == 'dino':  # pads nothing
            sizes = [(64, 96)] * 3
        drawings = [Drawing(*size, 3, seed=i) for i, size in enumerate(sizes)]
        self.samples = [drawing.sample() for drawing in drawings]
        self.images = [drawing.image.float() for drawing in drawings]
        inputs = [drawing.image for drawing in drawings]
        self.batch = {'inputs': inputs, 'data_samples': self.samples}

    def seams(self):
        part = split_batch(self.batch)[0]
        return find_seams(self.model, part, self.samples[:1])

    def stacked(self, objective='total'):
        basis = self.model, self.batch, self.samples, Objective(objective)
        return StackedOracle(*basis, self.seams(), SEEDS)

    def alone(self, place, objective='total'):
        part = split_batch(self.batch)[place]
        samples = self.samples[place : place + 1]
        return LossOracle(self.model, part, samples, Objective(objective))


@pytest.mark.parametrize('family', list(HEADS))
def test_values_gradients_and_draws_are_those_of_images_alone(family):
    case = Case(family)
    # Another point in the second call, where the samplers go on drawing.
    points = [case.images, [255 - image for image in case.images]]
    with loss_mode(case.model):
        oracle = case.stacked()
        assert oracle._seams.heads == HEADS[family]
        with seeded(99, CPU):
            before = torch.get_rng_state()
            found = [oracle.value_and_grad(point) for point in points]
            assert torch.equal(torch.get_rng_state(), before)
        for place, seed in enumerate(SEEDS):
            alone = case.alone(place)
            with seeded(seed, CPU):
                for point, (values, grads) in zip(points, found, strict=True):
                    value, (grad,) = alone.value_and_grad([point[place]])
                    torch.testing.assert_close(values[place], value[0])
                    assert grad.norm() > 0
                    assert (grads[place] - grad).norm() < 1e-3 * grad.norm()
            assert [alone.forwards * 3, alone.backwards * 3] == [
                oracle.forwards,
                oracle.backwards,
            ]


@pytest.mark.parametrize('objective', ['mislabel', 'vanish', 'background', 'reg'])
def test_every_image_has_its_own_objective(objective):
    case = Case('fcos')
    with loss_mode(case.model):
        oracle = case.stacked(objective)
        values, grads = oracle.value_and_grad(case.images)
        torch.testing.assert_close(oracle.value(case.images), values)
        for place in range(3):
            alone = case.alone(place, objective)
            value, (grad,) = alone.value_and_grad([case.images[place]])
            torch.testing.assert_close(values[place], value[0])
            assert (grads[place] - grad).norm() <= 1e-3 * grad.norm()
            assert oracle.forwards == 3 * alone.forwards + 3  # those of value()


@pytest.mark.parametrize('attack', [PGD(eps=4, num_steps=3), APGD(eps=4, num_steps=4)])
def test_attacks_find_what_they_find_alone(attack):
    case = Case('fcos')
    draws = [attack_generator(seed) for seed in SEEDS]
    with loss_mode(case.model):
        together = attack.perturb(case.stacked(), case.images, draws)
        for place, seed in enumerate(SEEDS):
            image = case.images[place]
            with seeded(seed, CPU):
                draw = attack_generator(seed)
                (alone,) = attack.perturb(case.alone(place), [image], draw)
            assert (alone != image).float().mean() > 0.9
            # Rounding turns the sign of the smallest gradients.
            assert ((together[place] - alone).abs() < 1e-3).float().mean() > 0.999


def test_the_options_of_speed_hold_for_stacks_too():
    case, speed = Case('fcos'), Acceleration('bfloat16', channels_last=True)
    with loss_mode(case.model), speed.prepared(case.model):
        plain, oracle = case.alone(1), case.stacked()
        exact = plain.value([case.images[1]])
        with speed.on(case.model):
            values, grads = oracle.value_and_grad(case.images)
            value, (grad,) = plain.value_and_grad([case.images[1]])
    assert value != exact
    assert (values[1] - value[0]).abs() < 0.01 * value[0]
    assert (grads[1] - grad).norm() < 0.1 * grad.norm()


def test_an_overflow_of_one_image_is_none_of_the_others():
    case = Case('fcos', sizes=[(96, 128)] * 3)
    case.images[1] = case.images[1] * float('nan')
    with loss_mode(case.model):
        values, grads = case.stacked().value_and_grad(case.images)
        value, (grad,) = case.alone(2).value_and_grad([case.images[2]])
    assert not values[1].isfinite()
    assert values[0].isfinite()
    torch.testing.assert_close(values[2], value[0])
    assert (grads[2] - grad).norm() < 1e-3 * grad.norm()


# ------------------------------------------------------------- where it cannot be done


@MODELS.register_module(force=True)
class OddFCOS(FCOS):
    """Extracts features in some other way."""

    def __init__(self, oddity, **kwargs):
        super().__init__(**kwargs)
        self.oddity = oddity

    def extract_feat(self, batch_inputs):
        if self.oddity == 'mean of the batch':
            batch_inputs = batch_inputs - batch_inputs.mean()
        if self.oddity == 'draws':
            batch_inputs = batch_inputs + torch.randn_like(batch_inputs)
        features = super().extract_feat(batch_inputs)
        if self.oddity == 'gradient of the batch':
            own = features[0]
            features = (own + own.sum() - own.sum().detach(), *features[1:])
        if self.oddity == 'a level for all':
            features = (*features, features[0].sum())
        if self.oddity == 'a dict':
            return dict(enumerate(features))
        return features

    def loss(self, batch_inputs, batch_data_samples):
        if self.oddity == 'twice':
            self.extract_feat(batch_inputs)
        if self.oddity == 'other input':
            batch_inputs = batch_inputs * 1.0
        x = self.extract_feat(batch_inputs)
        x = list(x.values()) if isinstance(x, dict) else list(x)[:4]
        return self.bbox_head.loss(tuple(x), batch_data_samples)


@pytest.mark.parametrize(
    ('oddity', 'reason'),
    [
        ('mean of the batch', 'depends on others'),
        ('draws', 'depends on others'),
        ('gradient of the batch', 'depends on others'),
        ('a level for all', 'no place for every image'),
        ('a dict', 'an output is a dict'),
        ('twice', 'exactly once'),
        ('other input', 'as it is'),
    ],
)
def test_models_that_mix_images_are_found_out(oddity, reason):
    case = Case({**tiny.fcos(), 'type': 'OddFCOS', 'oddity': oddity})
    with loss_mode(case.model), pytest.raises(NotStackedError, match=reason):
        case.seams()


def test_the_same_model_without_oddity_is_not():
    case = Case({**tiny.fcos(), 'type': 'OddFCOS', 'oddity': 'none'})
    with loss_mode(case.model):
        # Its head gets another list than extract_feat gave, and so works alone.
        assert case.seams().heads == []


def test_it_is_tried_with_all_digits():
    """Also on a GPU, whose kernels for convolutions keep three of them."""
    case, seen = Case('fcos'), []
    cudnn = torch.backends.cudnn

    def precision():
        if hasattr(cudnn, 'conv'):
            return cudnn.conv.fp32_precision
        return 'tf32' if cudnn.allow_tf32 else 'ieee'

    case.model.backbone.register_forward_hook(lambda *_: seen.append(precision()))
    before = precision()
    with loss_mode(case.model):
        case.seams()
    assert set(seen) == {'ieee'}
    assert precision() == before != 'ieee'


def test_statistics_of_the_batch_are_found_out():
    case = Case('fcos')
    with loss_mode(case.model):
        case.model.backbone.bn1.train()
        with pytest.raises(NotStackedError, match='depends on others'):
            case.seams()


def test_a_head_that_mixes_images_is_left_out(monkeypatch):
    case = Case('fcos')
    head = type(case.model.bbox_head)
    original = head.forward

    def mixing(self, x):
        scores, *rest = original(self, x)
        return ([s - s.mean() for s in scores], *rest)

    monkeypatch.setattr(head, 'forward', mixing)
    with loss_mode(case.model):
        oracle = case.stacked()
        assert oracle._seams.heads == []
        values = oracle.value(case.images)
        wanted = case.alone(1).value(case.images[1:2])
        torch.testing.assert_close(values[1:2], wanted)


def test_unknown_preprocessors_are_not_stacked():
    class Other(type(Case('fcos').model.data_preprocessor)):
        pass

    case = Case('fcos')
    case.model.data_preprocessor.__class__ = Other
    with loss_mode(case.model), pytest.raises(NotStackedError, match='Other'):
        case.seams()


def test_nothing_is_left_behind_on_the_model():
    case = Case('fcos')
    before = [set(vars(module)) for module in case.model.modules()]
    with loss_mode(case.model):
        case.stacked().value_and_grad(case.images)
        case.model.backbone.bn1.train()
        with pytest.raises(NotStackedError):
            case.seams()
        case.model.backbone.bn1.eval()
    assert [set(vars(module)) for module in case.model.modules()] == before
    hooks = [m._forward_pre_hooks for m in case.model.modules()]
    assert not any(hooks)


def test_draws_go_on_as_if_nothing_came_in_between():
    import random

    import numpy as np

    def draw():
        return float(torch.rand(())), float(np.random.rand()), random.random()

    with seeded(3, CPU):
        wanted = [draw(), draw()]
    draws, found = Draws(3, CPU), []
    with seeded(8, CPU):
        first = draw()
        rest = draw()
    with seeded(8, CPU):
        assert draw() == first
        for _ in range(2):
            with draws.going_on():
                found.append(draw())
        assert draw() == rest
    assert found == wanted
