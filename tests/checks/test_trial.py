"""The trials on single images: detectors with a defect, and without."""

import json
from contextlib import nullcontext

import defective
import pytest
import torch
from defective import with_defect

from mmrobust.checks import examine, trial_verdicts
from mmrobust.checks.trial import SEVERAL, _Trial


_KNOWN = {}


def _examine(trained, defect, images, eps=8.0):
    """Examines each image once, however often it is asked for."""
    return [_examine_one(trained, defect, index, eps) for index in images]


def _examine_one(trained, defect, index, eps):
    key = (id(trained), defect, index, eps)
    if key not in _KNOWN:
        with with_defect(trained, index, defect):
            _KNOWN[key] = examine(
                trained.images(index),
                lambda: trained.oracle(index),
                trained.score(index),
                torch.Generator().manual_seed(index),
                eps=eps,
            )
    return _KNOWN[key]


def test_a_healthy_detector_passes(trained):
    trials = _examine(trained('fcos'), None, (0, 1))
    assert trial_verdicts(trials) == []
    for trial in trials:
        assert (trial['loss_spread'], trial['score_spread']) == (0, 0)
        assert trial['agreement'] == pytest.approx(1, abs=0.25)
        assert trial['unbounded_score'] < 0.01
        assert trial['unbounded_loss'] > 3 * trial['loss']
        assert trial['score'] > 0.3
        assert trial['attack_score'] < trial['noise_score'] - 0.1


def test_a_loss_with_random_samplers_is_no_randomised_detector(trained):
    trials = _examine(trained('faster_rcnn'), None, (1,))
    assert trial_verdicts(trials) == []
    (trial,) = trials
    assert trial['loss_spread'] > 1e-4
    assert (trial['repeat_spread'], trial['score_spread']) == (0, 0)


def test_cost_and_state(trained):
    first = _examine_one(trained('fcos'), None, 0, 8.0)
    cost = [first[name] for name in ('forwards', 'backwards', 'predictions')]
    assert cost == [45, 31, 6]
    json.dumps(first, allow_nan=False)


def test_global_generators_neither_matter_nor_move(trained):
    # Asks the global generator in every forward pass.
    fcos, defect = trained('fcos'), defective.noisy
    first = _examine_one(fcos, defect, 1, 8.0)
    del _KNOWN[id(fcos), defect, 1, 8.0]
    torch.manual_seed(77)
    state = torch.get_rng_state()
    assert _examine_one(fcos, defect, 1, 8.0) == first
    assert torch.equal(torch.get_rng_state(), state)


RANDOM = 'the detector is randomised'
SEEDED = 'under the same seed'
FLAT = 'is exactly 0 on'
STANDS = 'are still detected'
MASKED = 'the loss does not rise either'
OTHER = 'although the loss rises'
NOISE = 'no less than random noise'
DOWN = 'falls along its own gradient'
SHORT = 'lets only a part of the gradient through'
PATH = 'prediction differs from the loss: its neck sleeps; '


@pytest.mark.parametrize(
    ('defect', 'images', 'expected'),
    [
        ('noisy', (1,), [RANDOM]),
        ('noisy_by_itself', (1,), [SEEDED, RANDOM]),
        ('rounded', (0,), [FLAT, STANDS + MASKED, NOISE]),
        ('blind', (0,), [FLAT, STANDS + MASKED, NOISE]),
        # so few images, each twice, make a verdict of the loss against the detections
        ('decoupled', (0, 2) * 2, [STANDS + OTHER, NOISE]),
        # in a small ball, where no step overshoots
        ('flipped', (0, 2) * 2, [DOWN, NOISE]),
    ],
)
def test_a_defect_is_named(trained, defect, images, expected):
    eps = 0.2 if defect == 'flipped' else 8.0
    trials = _examine(trained('fcos'), getattr(defective, defect), images, eps)
    found = trial_verdicts(trials)
    assert len(found) == len(expected), found
    for sentence, parts in zip(found, expected, strict=True):
        for part in (MASKED, OTHER):
            assert (part in sentence) == (part in parts)
        assert parts.replace(MASKED, '').replace(OTHER, '') in sentence


def test_a_small_ball_is_no_defect(trained):
    assert trial_verdicts(_examine(trained('fcos'), None, (0, 2), 1.0)) == []


def test_a_ball_of_less_than_a_pixel_unit_is_tried(trained):
    """Fractions of a unit are no mistake here: they were checked before."""
    (trial,) = _examine(trained('fcos'), None, (0,), 0.5)
    assert trial['eps'] == 0.5
    assert trial['attack_loss'] > trial['loss']


def _trial(**changes):
    """What a healthy image gives."""
    return {
        'loss': 1.0, 'loss_spread': 0.3, 'repeat_spread': 0.0,
        'gradient': 1e-5, 'agreements': [1.0, 0.9, 1.0],
        'score': 0.5, 'score_spread': 0.0,
        'unbounded_loss': 9.0, 'unbounded_score': 0.0,
        'noise_loss': 1.0, 'noise_score': 0.5,
        'attack_loss': 2.0, 'attack_score': 0.2,
        'norm': 'linf', 'eps': 4.0,
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ('changes', 'count', 'expected'),
    [
        ({}, 1, ''),
        # rounding errors of a GPU, and what is more
        ({'repeat_spread': 1e-5, 'score_spread': 0.004}, 2, ''),
        ({'repeat_spread': 2e-4}, 1, SEEDED),
        ({'score_spread': 0.006}, 1, RANDOM),
        # no loss, so no gradient: an objective that the image lacks
        ({'loss': 0.0, 'gradient': 0.0, 'agreements': []}, 2, ''),
        ({'gradient': 0.0, 'agreements': []}, 2, FLAT),
        # two-stage detectors on few images, or at one step size
        ({'agreements': [-1.0, -0.9, -1.1]}, SEVERAL - 1, ''),
        ({'agreements': [-1.0, -0.9, -1.1]}, SEVERAL, DOWN),
        ({'agreements': [-9.0, -0.5, 0.2]}, SEVERAL, ''),
        ({'agreements': [-0.5, -0.2, 0.01]}, SEVERAL, DOWN),
        ({'agreements': [-0.01, 0.02, -0.02]}, SEVERAL, ''),
        ({'agreements': [-1.0]}, SEVERAL, DOWN),
        # Faster R-CNN at its worst, and a gradient that is too short
        ({'agreements': [-10.0, 30.0, 1.5]}, SEVERAL, ''),
        ({'agreements': [11.0, 12.0, -11.0]}, SEVERAL, SHORT),
        ({'agreements': [11.0, 12.0, 11.0]}, SEVERAL - 1, ''),
        ({'path': 'its neck sleeps'}, 1, PATH),
        ({'path': ''}, 1, ''),
        ({'agreements': []}, SEVERAL, ''),
        # nothing to lose
        ({'score': 0.01, 'unbounded_score': 0.01, 'attack_score': 0.5}, 2, ''),
        ({'unbounded_score': 0.049}, 2, ''),
        ({'unbounded_score': 0.051}, 2, OTHER),
        ({'unbounded_score': 0.5, 'unbounded_loss': None}, 2, MASKED),
        # small sets, where the loss shows that the attack does find something
        ({'attack_score': 0.5}, SEVERAL - 1, ''),
        ({'attack_score': 0.5}, SEVERAL, NOISE),
        ({'attack_score': 0.5, 'attack_loss': 1.1, 'noise_loss': 1.05}, 1, NOISE),
        ({'attack_score': 0.498}, SEVERAL, ''),
        ({'attack_score': 0.5, 'eps': 0.0}, SEVERAL, ''),
        ({'attack_score': 0.04, 'noise_score': 0.04}, SEVERAL, ''),
    ],
)
def test_thresholds(changes, count, expected):
    found = trial_verdicts([_trial(**changes)] * count)
    assert len(found) == bool(expected)
    assert not expected or expected in found[0]


def test_no_image_gives_no_sentence():
    assert trial_verdicts([]) == []


def test_noise_of_its_own_is_no_difference_of_paths():
    found = trial_verdicts([_trial(path='its neck sleeps', repeat_spread=0.1)])
    assert len(found) == 1
    assert SEEDED in found[0]


def test_a_neck_that_leaks_gradients(trained):
    """Not its sign: the size of the gradient gives it away."""
    fcos = trained('fcos')

    def gradient(index):
        trial = _Trial(
            lambda: fcos.oracle(index), None, torch.device('cpu'), nullcontext
        )
        return _trial(**trial.gradient(fcos.images(index), 0))

    def leak(module, inputs, outputs):
        return tuple(each.detach() + 1e-3 * (each - each.detach()) for each in outputs)

    images = (0, 1, 2, 0)
    assert trial_verdicts([gradient(index) for index in images]) == []
    handle = fcos.model.neck.register_forward_hook(leak)
    try:
        (found,) = trial_verdicts([gradient(index) for index in images])
    finally:
        handle.remove()
    assert SHORT in found


def test_one_odd_image_is_no_verdict():
    odd = _trial(unbounded_score=0.5, agreements=[-2.0], attack_score=0.5)
    assert trial_verdicts([_trial(), odd, _trial(), _trial()]) == []
