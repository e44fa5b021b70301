"""What is seen of an oracle: by hand, and on detectors with and without defects."""

import copy
import math

import defective
import pytest
import torch
from defective import with_defect

from mmrobust.attacks import APGD, PGD, Square, TransferPGD
from mmrobust.checks import WatchedOracle, pass_verdicts


class Scripted:
    """Answers what it is told: values (N,) or (1,), and gradients of N images."""

    def __init__(self, *answers):
        self.answers, self.forwards = list(answers), 0

    def value(self, images):
        self.forwards += 1
        return self.answers.pop(0)

    def value_and_grad(self, images):
        self.forwards += 1
        return self.answers.pop(0)


def _grad(*values):
    return torch.tensor(values).view(1, 1, -1)


def _asked(*answers):
    oracle = WatchedOracle(Scripted(*answers))
    images = [torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)]
    for answer in answers:
        ask = oracle.value_and_grad if isinstance(answer, tuple) else oracle.value
        found = ask(images)
        if isinstance(answer, tuple):
            assert found[0] is answer[0]
            assert found[1] is answer[1]
        else:
            assert found is answer
    return oracle.summary()


def test_summary_by_hand():
    nan, inf = math.nan, math.inf
    ones, zeros = _grad(1.0, 1, -1, 1), _grad(0.0, 0, 0, 0)
    first, second = _asked(
        torch.tensor([1.0, 0.0]),
        (torch.tensor([2.0, 0.0]), [_grad(0.0, 1, 0, nan), zeros]),
        (torch.tensor([nan, 0.0]), [zeros, zeros]),
        (torch.tensor([4.0, 0.0]), [zeros, zeros]),
        (torch.tensor([3.0, 5.0]), [ones, ones]),
        (torch.tensor([7.0, 4.0]), [_grad(0.0, -1, 1, 1), zeros]),
        torch.tensor([inf, 3.0]),
    )
    assert first == {
        'calls': 7,
        'gradient_calls': 5,
        'informative_calls': 4,
        'zero_calls': 0,
        'zero_share': pytest.approx((0.5 + 1 + 0 + 0.25) / 4),
        'all_zero_share': 0.25,
        'first': 1.0,
        'start': 2.0,
        'last': None,  # it is not finite
        'best_quarter': 2.0,
        'best_half': 4.0,
        'best': 7.0,
        'non_finite': 2,
    }
    assert second == {
        'calls': 7,
        'gradient_calls': 5,
        'informative_calls': 2,
        'zero_calls': 3,
        'zero_share': 0.5,
        'all_zero_share': 0.5,
        'first': 0.0,
        'start': 0.0,
        'last': 3.0,
        'best_quarter': 0.0,
        'best_half': 0.0,
        'best': 5.0,
        'non_finite': 0,
    }


def test_what_is_not_known_is_none():
    (row, _) = _asked(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    unknown = ('zero_share', 'all_zero_share', 'start', 'last', 'best_half')
    assert [row[name] for name in unknown] == [None] * 5
    assert (row['calls'], row['gradient_calls'], row['best']) == (2, 0, 3.0)
    # One gradient and nothing after it: no step has been seen.
    (row, _) = _asked((torch.tensor([1.0, 2.0]), [_grad(0.0, 1, 1, 1)] * 2))
    assert (row['start'], row['last'], row['zero_share']) == (1.0, None, 0.25)
    assert WatchedOracle(Scripted()).summary() == []


def test_one_value_for_the_batch_counts_for_each_image():
    first, second = _asked(
        (torch.tensor([-2.0]), [_grad(0.0, 1, 1, 1), _grad(0.0, 0, 0, 0)])
    )
    assert (first['start'], second['start']) == (-2.0, -2.0)
    assert (first['zero_share'], second['zero_share']) == (0.25, 1.0)


def test_an_attack_that_writes_into_its_answers_changes_nothing():
    values = torch.tensor([1.0])
    oracle = WatchedOracle(Scripted((values, [_grad(1.0)])))
    oracle.value_and_grad([torch.zeros(1, 1, 1)])
    values += 5
    assert oracle.summary()[0]['first'] == oracle.summary()[0]['start'] == 1.0


def test_the_host_waits_for_nothing_before_the_summary():
    # Tensors without data: reading a number off them raises.
    def answer(images):
        return torch.empty(2, device='meta'), list(images)

    class Dataless:
        value_and_grad = staticmethod(answer)

        def value(self, images):
            return answer(images)[0]

    oracle = WatchedOracle(Dataless())
    images = [torch.empty(3, 4, 4, device='meta'), torch.empty(3, 5, 4, device='meta')]
    for _ in range(3):
        oracle.value(images)
        oracle.value_and_grad(images)
    with pytest.raises((RuntimeError, NotImplementedError)):
        oracle.summary()


def test_attributes_are_those_of_the_oracle():
    inner = Scripted(torch.tensor([1.0]))
    oracle = WatchedOracle(inner)
    oracle.value([torch.zeros(1, 1, 1)])
    assert oracle.forwards == inner.forwards == 1
    with pytest.raises(AttributeError):
        _ = oracle.nothing
    assert copy.copy(oracle).forwards == 1


@pytest.mark.parametrize(
    'attack',
    [
        PGD(eps=4, num_steps=2),
        # Moves the samples of the oracle along with diverse images.
        TransferPGD(eps=4, num_steps=2, diversity_prob=1.0, smallest=0.5),
        APGD(eps=4, num_steps=2),
        Square(eps=4, num_queries=5, objective='total'),
    ],
)
def test_attacks_do_the_same_on_a_watched_oracle(trained, attack):
    fcos = trained('fcos')
    found = []
    for wrap in (lambda oracle: oracle, WatchedOracle):
        oracle = wrap(fcos.oracle(0))
        (image,) = attack.perturb(
            oracle, fcos.images(0), torch.Generator().manual_seed(1)
        )
        found.append((image, oracle.forwards, oracle.backwards))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def _watch(trained, attack, defect=None, objective='total', images=(0, 1, 2)):
    rows = []
    for index in images:
        with with_defect(trained, index, defect):
            oracle = WatchedOracle(trained.oracle(index, objective))
            attack.perturb(
                oracle, trained.images(index), torch.Generator().manual_seed(1)
            )
            rows += oracle.summary()
    return rows


@pytest.mark.parametrize(
    ('family', 'objective'),
    [
        ('fcos', 'total'),
        ('fcos', 'reg'),
        ('fcos', 'vanish'),
        ('fcos', 'dag'),
        ('faster_rcnn', 'total'),
        ('faster_rcnn', 'reg'),
    ],
)
def test_a_healthy_detector_raises_no_suspicion(trained, family, objective):
    # The last image has no object, so that its box losses are 0 all along.
    images = (0, 2, 3) if family == 'fcos' else (1, 3)
    attack = PGD(eps=4, num_steps=4)
    rows = _watch(trained(family), attack, None, objective, images)
    assert pass_verdicts(rows) == []
    if objective == 'reg':
        assert rows[-1]['informative_calls'] == 0


def test_nothing_but_images_without_objects_is_said(trained):
    rows = _watch(trained('fcos'), PGD(eps=4, num_steps=3), None, 'reg', (3,))
    (sentence,) = pass_verdicts(rows)
    assert 'was 0 at every step on all 1 images' in sentence


@pytest.mark.parametrize(
    ('defect', 'sentence'),
    [
        ('rounded', 'on 2 of 2 images the gradient is exactly 0'),
        ('saturated', 'on 2 of 2 images the gradient is exactly 0'),
        ('blind', 'on 2 of 2 images the gradient is exactly 0'),
        ('broken', 'not finite'),
    ],
)
def test_masked_gradients_and_overflows_are_noticed(trained, defect, sentence):
    attack = PGD(eps=4, num_steps=4)
    rows = _watch(trained('fcos'), attack, getattr(defective, defect), images=(0, 2))
    assert sentence in pass_verdicts(rows)[0]


def test_a_gradient_that_leads_down_is_noticed(trained):
    # In steps so small that none overshoots.
    attack = PGD(eps=1, num_steps=6, step_size=0.05)
    rows = _watch(trained('fcos'), attack, defective.flipped)
    (sentence,) = pass_verdicts(rows)
    assert 'on 3 of 3 images the objective is no larger after the last step' in sentence
    assert pass_verdicts(_watch(trained('fcos'), attack)) == []


def test_queries_that_find_nothing_are_noticed(trained):
    attack = Square(eps=8, num_queries=12, objective='total')
    rows = _watch(trained('fcos'), attack, defective.blind)
    (sentence,) = pass_verdicts(rows)
    assert 'on 3 of 3 images no query' in sentence
    assert pass_verdicts(_watch(trained('fcos'), attack)) == []


# Sentences on passes made by hand.


def _row(**changes):
    """What a healthy image gives."""
    return {
        'calls': 12, 'gradient_calls': 10, 'informative_calls': 10, 'zero_calls': 0,
        'zero_share': 0.001, 'all_zero_share': 0.0, 'first': 1.0, 'start': 1.0,
        'last': 3.0, 'best_quarter': 1.5, 'best_half': 2.0, 'best': 3.0,
        'non_finite': 0, **changes,
    }  # fmt: skip


EMPTY = dict(
    informative_calls=0, zero_calls=10, zero_share=None, all_zero_share=None,
    first=0.0, start=0.0, last=0.0, best=0.0,
)  # fmt: skip
FLAT = dict(zero_share=1.0, all_zero_share=1.0)
QUERIES = dict(
    gradient_calls=0, informative_calls=0, zero_share=None, all_zero_share=None,
    start=None, last=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ('odd', 'of', 'expected'),
    [
        (_row(**FLAT), 100, 'on 1 of 100 images the gradient is exactly 0'),
        (_row(**FLAT), 101, None),  # under one in a hundred
        (_row(all_zero_share=0.49), 1, None),
        (_row(zero_share=0.51), 1, '51% of all gradient values'),
        (_row(zero_share=0.49), 1, None),
        # images without objects are counted apart
        (_row(**EMPTY), 2, None),
        (_row(**EMPTY), 1, 'was 0 at every step on all 1 images'),
        (_row(non_finite=3), 5, 'not finite 3 times on 1 of 5 images'),
        (_row(last=1.0), 1, 'on 1 of 1 images the objective is no larger'),
        (_row(last=1.0), 2, None),  # half is no majority
        (_row(last=0.9, gradient_calls=2), 1, None),  # one step may overshoot
        (_row(last=None, gradient_calls=1), 1, None),
        (_row(**QUERIES, best=1.0), 1, 'on 1 of 1 images no query'),
        (_row(**QUERIES, best=1.1), 1, None),
        (_row(**QUERIES, best=1.0, calls=9), 1, None),
    ],
)
def test_thresholds_of_a_pass(odd, of, expected):
    found = pass_verdicts([_row()] * (of - 1) + [odd])
    assert len(found) == (expected is not None), found
    assert expected is None or expected in found[0]


def test_a_pass_that_asks_nothing_is_silent():
    assert pass_verdicts([]) == []


def test_flat_images_without_objects_do_not_dilute_the_share():
    rows = [_row(**EMPTY)] * 500 + [_row(**FLAT)]
    assert 'on 1 of 1 images' in pass_verdicts(rows)[0]
