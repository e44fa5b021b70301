"""Passes compared with each other: figures made by hand, and of detectors."""

import defective
import pytest
import torch
from defective import with_defect

from mmrobust.attacks import PGD, RandomNoise, Square
from mmrobust.checks import comparison_verdicts
from mmrobust.report import AttackResult, Figure, figure_of


def test_the_figure_of_a_pass():
    boxes = {'mAP': {'estimate': 0.4, 'low': 0.35, 'high': 0.47}}
    metrics = {'coco/bbox_mAP_50': 0.7, 'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.3}
    assert figure_of(metrics, boxes) == Figure(0.4, 0.35, 0.47)
    assert figure_of(metrics) == Figure(0.5)
    assert figure_of({'accuracy/top1': 71.0}).share == pytest.approx(0.71)
    assert figure_of({'coco/bbox_mAP': float('nan')}) is None
    assert figure_of({}, {'mAP': {'estimate': None}}) is None


def _boxes(ap, margin):
    return {'mAP': {'estimate': ap, 'low': ap - margin, 'high': ap + margin}}


def _pgd(
    ap, eps=8.0, steps=10, margin=0.03, name=None, drop=None, fields=(), **settings
):
    boxes = _boxes(ap, margin)
    if drop:
        boxes['drop'] = {'estimate': sum(drop) / 2, 'low': drop[0], 'high': drop[1]}
    settings = {
        'norm': 'linf', 'eps': eps, 'step_size': 2.5 * eps / max(steps, 1),
        'num_steps': steps, 'objective': 'total', 'restarts': 1,
        'random_start': True, **settings,
    }  # fmt: skip
    name = name or f'pgd_{eps:g}_{steps}'
    return AttackResult(name, settings, boxes=boxes, **dict(fields))


def _noise(ap, eps=8.0, margin=0.03):
    settings = {'norm': 'linf', 'eps': eps, 'num_steps': 0, 'objective': None}
    boxes = _boxes(ap, margin)
    return AttackResult(f'noise_{eps:g}', settings, boxes=boxes, asks='nothing')


def _universal(ap, control, name='universal', **patch):
    told = {'norm': 'linf', 'eps': 8.0, 'num_steps': 0, 'objective': None, **patch}
    passes = {name: (ap, 'file'), f'{name}-random': (control, 'control_of')}
    return [
        AttackResult(
            name, {**told, key: 'u.png'}, boxes=_boxes(each, 0.03), asks='nothing'
        )
        for name, (each, key) in passes.items()
    ]


def _patches(small, large):
    """One file at two sizes, each with figures of its own and of its control."""
    sizes = {'small': (small, '0.01'), 'large': (large, '0.4')}
    return [
        each
        for name, (figures, size) in sizes.items()
        for each in _universal(*figures, name, patch={'size': size})
    ]


def _square(ap):
    settings = {'objective': 'detections', 'num_queries': 100}
    return _pgd(ap, 8.0, 100, name='square', fields={'asks': 'values'}, **settings)


def _mim(ap):
    return _pgd(ap, name='mim', fields={'transferable': True}, decay=1.0)


def test_the_tables_of_two_healthy_detectors_are_silent():
    # Measured on 40 images of the demo: standard, and adversarially trained.
    for benign, aps, margin in (
        (0.751, (0.675, 0.609, 0.470, 0.280, 0.140, 0.002), 0.07),
        (0.733, (0.705, 0.690, 0.633, 0.538, 0.331, 0.000), 0.05),
    ):
        radii = (1, 2, 4, 8, 16, 255)
        passes = [_pgd(ap, eps, 10, margin) for eps, ap in zip(radii, aps, strict=True)]
        passes += [_noise(benign + 0.002, eps, margin) for eps in radii[:5]]
        passes += [_pgd(aps[3] - 0.01, 8.0, 20, margin), _square(0.69)]
        assert comparison_verdicts(Figure(benign), passes) == {}


def _on_fog(ap, severity=3, **settings):
    if not settings:
        settings = {'norm': None, 'eps': None, 'num_steps': None, 'objective': None}
    settings = {**settings, 'corruption': 'fog', 'severity': severity}
    return AttackResult(
        f'fog{severity}', settings, boxes=_boxes(ap, 0.01), asks='nothing'
    )


def test_corrupted_pictures_are_compared_with_each_other():
    fog = {'corruption': 'fog', 'severity': 3}
    # Neither fog nor an attack on it is compared with what is on clean pictures.
    passes = [_noise(0.6), _pgd(0.4), _on_fog(0.65), _on_fog(0.3, 4)]
    assert comparison_verdicts(Figure(0.61), passes) == {}
    weak = _pgd(0.64, name='weak', margin=0.01, drop=(0.1, 0.3), **fog)
    assert comparison_verdicts(Figure(0.61), [*passes, weak]) == {}
    helps = _pgd(0.7, name='helps', margin=0.01, drop=(0.1, 0.3), **fog)
    (found,) = comparison_verdicts(Figure(0.9), [*passes, helps]).items()
    assert found[0] == 'helps'
    assert 'above the benign 0.650' in found[1][0]


@pytest.mark.parametrize(
    ('passes', 'name', 'expected'),
    [
        # a larger ball
        ([_pgd(0.4, 4), _pgd(0.4, 8)], 'pgd_8_10', 'AP is 0.400 at eps 8'),
        ([_pgd(0.4, 4), _pgd(0.45, 8)], 'pgd_8_10', 'AP is 0.450 at eps 8'),
        ([_pgd(0.4, 4), _pgd(0.3, 8)], None, ''),
        # ties that say nothing: coarse figures, hardly any effect, hardly any AP left
        ([_pgd(0.4, 4, margin=0.2), _pgd(0.4, 8, margin=0.2)], None, ''),
        ([_pgd(0.69, 4), _pgd(0.68, 8)], None, ''),
        ([_pgd(0.03, 4), _pgd(0.06, 8)], None, ''),
        # box losses alone cannot ruin everything
        ([_pgd(0.4, 4, objective='reg'), _pgd(0.39, 8, objective='reg')], None, ''),
        (
            [_pgd(0.4, 4, objective='reg'), _pgd(0.5, 8, objective='reg')],
            'pgd_8_10',
            'AP is 0.500 at eps 8',
        ),
        # settings that differ in more than eps are not compared
        ([_pgd(0.4, 4), _pgd(0.4, 8, restarts=2)], None, ''),
        ([_pgd(0.4, 4), _pgd(0.4, 8, norm='l2')], None, ''),
        # more steps
        ([_pgd(0.4, steps=1), _pgd(0.44, steps=20)], 'pgd_8_20', 'after 20 steps'),
        ([_pgd(0.4, steps=1), _pgd(0.42, steps=20)], None, ''),
        ([_pgd(0.4, steps=10), _pgd(0.4, steps=100)], None, ''),
        (
            [_pgd(0.4, steps=1, random_start=False), _pgd(0.5, steps=20)],
            'pgd_8_20',
            'after 20 steps',
        ),
        # APGD's settings tell the steps a second time
        (
            [
                _pgd(0.4, steps=5, radius_schedule=[(1.0, 5)]),
                _pgd(0.5, steps=20, radius_schedule=[(1.0, 20)]),
            ],
            'pgd_8_20',
            'after 20 steps',
        ),
        # no gradient, or that of others
        ([_pgd(0.4), _square(0.34)], 'square', 'this is a gradient-free attack'),
        ([_pgd(0.4), _square(0.38)], None, ''),
        ([_pgd(0.4), _pgd(0.3), _square(0.34)], None, ''),
        # An ensemble as low as its own member without gradients is no white-box attack.
        (
            [
                _pgd(0.4),
                _pgd(0.33, name='e', fields={'members': [{'name': 'square'}]}),
                _square(0.34),
            ],
            'square',
            'below the 0.400 of the best',
        ),
        ([_pgd(0.4, 16), _square(0.34)], None, ''),
        ([_pgd(0.06), _square(0.01)], None, ''),
        ([_pgd(0.4), _mim(0.3)], 'mim', 'transfer'),
        ([_pgd(0.4, steps=1), _mim(0.3)], None, ''),
        # noise
        ([_noise(0.6), _pgd(0.6)], 'pgd_8_10', 'no lower than under random noise'),
        ([_noise(0.6), _pgd(0.598)], 'pgd_8_10', 'no lower than under random noise'),
        ([_noise(0.6), _pgd(0.59)], None, ''),
        ([_noise(0.72), _pgd(0.7)], 'pgd_8_10', 'no lower than under random noise'),
        ([_noise(0.6, margin=0.2), _pgd(0.65, margin=0.2)], None, ''),
        ([_noise(0.6, 4), _pgd(0.6, 8)], None, ''),
        ([_noise(0.05), _pgd(0.05)], None, ''),
        # a perturbation of a file, which is no noise
        (_universal(0.6, 0.6), 'universal', 'and 0.600 under its control'),
        (_universal(0.65, 0.6), 'universal', 'does no more to this detector'),
        (_universal(0.59, 0.6), None, ''),
        (_universal(0.04, 0.04), None, ''),
        ([*_universal(0.3, 0.6), _pgd(0.4)], None, ''),
        (_patches((0.6, 0.65), (0.2, 0.4)), None, ''),
        (_patches((0.6, 0.6), (0.2, 0.4)), 'small', '(small-random)'),
        # above benign
        ([_pgd(0.74)], 'pgd_8_10', 'above the benign 0.700'),
        ([_pgd(0.72)], None, ''),
        ([_pgd(0.72, drop=(-0.03, -0.01))], 'pgd_8_10', 'above the benign 0.700'),
        ([_pgd(0.74, drop=(-0.09, 0.01))], None, ''),
        ([_noise(0.8)], None, ''),
        # unbounded
        ([_pgd(0.2, 255)], 'pgd_255_10', 'should be near 0'),
        ([_pgd(0.09, 255)], None, ''),
        ([_pgd(0.2, 64)], None, ''),
    ],
)
def test_comparisons(passes, name, expected):
    found = comparison_verdicts(Figure(0.7), passes)
    assert list(found) == ([name] if name else []), found
    if name:
        assert len(found[name]) == 1
        assert expected in found[name][0]


def test_without_benign_figure_or_interval_only_clear_cases_are_said():
    results = [_pgd(0.4, 4), _pgd(0.44, 8)]
    for result in results:
        ap = result.boxes['mAP']['estimate']
        result.boxes, result.metrics = None, {'coco/bbox_mAP': ap}
    assert comparison_verdicts(None, results) == {}
    results[1].metrics = {'coco/bbox_mAP': 0.46}
    assert list(comparison_verdicts(None, results)) == ['pgd_8_10']
    results[1].metrics = {}
    assert comparison_verdicts(None, results) == {}


IMAGES = (0, 1, 2)


def _evaluate(trained, defect, attacks):
    """AP under each attack, on a detector with the defect."""

    def ap(attack):
        detected = []
        for index in IMAGES:
            clean = trained.images(index)
            with with_defect(trained, index, defect):
                found = clean
                if attack:
                    draws = torch.Generator().manual_seed(index)
                    found = attack.perturb(trained.oracle(index), clean, draws)
                detected.append(trained.detect(index, found))
        return trained.mean_ap_of(detected)

    results = []
    for name, attack in attacks.items():
        metrics = {'coco/bbox_mAP': ap(attack)}
        results.append(AttackResult.of(name, attack, metrics=metrics))
    return comparison_verdicts(Figure(ap(None)), results)


def _pgds(*radii, **settings):
    return {f'pgd_{eps}': PGD(eps=eps, num_steps=6, **settings) for eps in radii}


@pytest.mark.parametrize(
    ('defect', 'attacks', 'name', 'expected'),
    [
        ('cleaned', _pgds(4, 24, random_start=False), 'pgd_24', 'at eps 24'),
        (
            None,  # the defect is in the attack: its steps cover a fifth of the ball
            {
                'fgsm': PGD(eps=16, num_steps=1, random_start=False),
                'short': PGD(eps=16, num_steps=4, step_size=0.1, random_start=False),
            },
            'short',
            'after 4 steps',
        ),
        (
            'rounded',
            {'pgd': PGD(eps=32, num_steps=4), 'square': Square(eps=32, num_queries=40)},
            'square',
            'gradient-free',
        ),
        (
            'rounded',
            {'noise': RandomNoise(eps=8), **_pgds(8, random_start=False)},
            'pgd_8',
            'no lower than under random noise',
        ),
        (
            'blind',
            {'pgd': PGD(eps=255, num_steps=4)},
            'pgd',
            'should be near 0',
        ),
    ],
)
def test_a_defect_shows_in_the_comparison(trained, defect, attacks, name, expected):
    fcos = trained('fcos')
    found = _evaluate(fcos, defect and getattr(defective, defect), attacks)
    assert any(expected in sentence for sentence in found[name]), found
    if defect:
        assert _evaluate(fcos, None, attacks) == {}
