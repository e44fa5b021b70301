"""Objectives of its own for the attack in a training, one or several by turns."""

from copy import deepcopy

import pytest
import tiny
import torch
from mmengine.config import ConfigDict
from updates import (
    Linear,
    assert_same_state,
    linear_batch,
    make_batch,
    make_model,
    sgd,
    watch_inputs,
)

from mmrobust.batch import float_images, with_images
from mmrobust.errors import ConfigError
from mmrobust.objective import loss_mode
from mmrobust.training import APGDAdversary, FreeAdversary, MTDAdversary, PGDAdversary
from mmrobust.training.mixed import Mixture


def mixed(*of, **settings):
    return dict(name='mixed', of=list(of), **settings)


def test_draws_follow_the_weights_and_the_seed():
    mixture = Mixture(['cls', dict(name='dag', target='next'), 'reg'], [2, 1, 1])
    assert mixture.name == 'mixed(0.5 cls, 0.25 dag(next), 0.25 reg)'
    draws = [mixture.draw(batch).name for batch in range(1000)]
    for name, share in (('cls', 0.5), ('dag(next)', 0.25), ('reg', 0.25)):
        assert draws.count(name) / 1000 == pytest.approx(share, abs=0.05)
    again = Mixture(['cls', dict(name='dag', target='next'), 'reg'], [2, 1, 1])
    assert [again.draw(batch).name for batch in range(50)] == draws[:50]
    torch.manual_seed(1)
    other = Mixture(['cls', dict(name='dag', target='next'), 'reg'], [2, 1, 1])
    assert [other.draw(batch).name for batch in range(50)] != draws[:50]


@pytest.mark.parametrize('kind', [PGDAdversary, APGDAdversary])
def test_each_batch_is_attacked_by_the_objective_drawn(kind):
    """One step from the image moves it along the sign of that loss's weights."""
    cls, reg = [2.0, 1, -1], [-1.0, 1, 1]
    batch, model = linear_batch((cls, reg)), Linear()
    seen = watch_inputs(model)
    adversary = kind(
        eps=4, num_steps=1, random_start=False, objective=mixed('cls', 'reg')
    )
    for iteration in range(8):
        adversary.train_step(model, sgd(model), batch, iteration)
        drawn = adversary.mixture.draw(iteration).name
        signs = torch.tensor({'cls': cls, 'reg': reg}[drawn]).sign().view(3, 1, 1)
        assert torch.equal(seen[-1][0], 100 + 4 * signs), (iteration, drawn)
    assert adversary.describe()['objective'] == 'mixed(0.5 cls, 0.5 reg)'


def test_the_attack_has_its_own_loss_and_the_update_the_stock_one():
    """Vanish: one step down all losses on empty truth, then a stock update."""
    batch = make_batch([(64, 96), (80, 64)], 0)
    model = make_model()
    by_hand = deepcopy(model)
    leaves = [image.requires_grad_() for image in float_images(batch, 'cpu')]
    empty = [sample.clone() for sample in batch['data_samples']]
    for sample in empty:
        sample.gt_instances = sample.gt_instances[:0]
    with loss_mode(by_hand):
        inputs = dict(inputs=leaves, data_samples=empty)
        losses = by_hand(**by_hand.data_preprocessor(inputs, False), mode='loss')
        grads = torch.autograd.grad(sum(losses.values()), leaves)
    moved = [
        (leaf - 4 * grad.sign()).clamp(0, 255).detach()
        for leaf, grad in zip(leaves, grads, strict=True)
    ]
    by_hand.train_step(with_images(batch, moved), sgd(by_hand))
    adversary = PGDAdversary(
        eps=4, num_steps=1, random_start=False, objective=mixed('vanish', 'vanish')
    )
    state = torch.get_rng_state()
    adversary.train_step(model, sgd(model), batch, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(model, by_hand)


@pytest.mark.parametrize('objective', ['ranking', 'dag'])
def test_objectives_of_evaluations_train(objective):
    model = make_model(ConfigDict(tiny.fcos()))
    seen = watch_inputs(model)
    batch = make_batch([(64, 64)], 0, 60, 190)
    adversary = PGDAdversary(eps=4, num_steps=1, objective=objective)
    adversary.train_step(model, sgd(model), batch, 0)
    change = (seen[-1][0] - batch['inputs'][0]).abs()
    assert float(change.max()) == pytest.approx(4, abs=1e-4)


@pytest.mark.parametrize(
    ('make', 'settings', 'sentence'),
    [
        (FreeAdversary, dict(objective='dag'), "objective 'dag' needs losses of its"),
        (FreeAdversary, dict(objective=mixed('total')), 'has one backward pass'),
        (MTDAdversary, dict(objective=mixed('total')), 'its own two objectives'),
        (MTDAdversary, dict(objective='vanish'), 'or PGDAdversary'),
        (PGDAdversary, dict(objective=mixed()), 'must be a list of objectives'),
        (PGDAdversary, dict(objective=mixed('total', 'dog')), "'dog' is unknown"),
        (PGDAdversary, dict(objective=mixed('total', 'cwa')), "'cwa' is an attack"),
        (PGDAdversary, dict(objective=mixed('cls', weights=[0])), 'must be above 0'),
        (PGDAdversary, dict(objective=mixed('cls', weights=[1, 2])), 'for each of'),
        (PGDAdversary, dict(objective=mixed('cls', share=1)), "setting 'share'"),
        (
            PGDAdversary,
            dict(objective=mixed('cls', 'dag'), class_weighting='batch'),
            'the same losses',
        ),
    ],
)
def test_impossible_mixtures(make, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(**settings)


def test_an_objective_that_the_model_lacks_is_found_at_once():
    """Whichever the first batch has."""
    adversary = PGDAdversary(objective=mixed('rpn', 'total', weights=[1e-9, 1]))
    model = make_model()
    assert adversary.mixture.draw(0).name == 'total'
    with pytest.raises(ConfigError, match='no region proposal network'):
        adversary.train_step(model, sgd(model), make_batch([(64, 64)], 0), 0)
