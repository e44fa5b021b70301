"""The test loop says what is wrong with a detector, or with an attack."""

from dataclasses import replace

import tiny
from evaluated import ap, attack_of
from mmdet.models import FCOS
from mmdet.registry import MODELS
from mmrobust.attacks import PGD, Attack, RandomNoise
from mmrobust.evaluation import pass_tables
from mmrobust.registry import ATTACKS
from torch.nn.functional import avg_pool2d

NOISE = dict(type='mmrobust.RandomNoise', eps=8)
STEPS = dict(type='mmrobust.PGD', eps=8, num_steps=5, random_start=False)


def ensemble(eps, queries):
    members = dict(
        apgd=dict(type='mmrobust.APGD', num_steps=3),
        square=dict(type='mmrobust.Square', num_queries=queries),
    )
    return dict(type='mmrobust.Ensemble', eps=eps, members=members)


def says(sentences, *parts):
    """Whether one of the sentences has all the parts."""
    return any(all(part in text for part in parts) for text in sentences)


def test_a_healthy_detector_has_no_warnings(evaluate, tmp_path):
    attacks = dict(noise=NOISE, pgd=STEPS, ensemble=ensemble(1, 10))
    report = evaluate(attacks, check_images=1)
    assert report['checks'] == []
    assert [attack['checks'] for attack in report['attacks']] == [[], [], []]
    assert 'No warnings.' in (tmp_path / 'r.md').read_text()
    # There was something to judge.
    members = attack_of(report, 'ensemble')['members']
    assert [member['images'] for member in members] == [6, 6]
    assert ap(attack_of(report, 'pgd')) < 0.5 * ap(report['benign'])


def test_masked_gradients(evaluate, tmp_path):
    attacks = dict(pgd=dict(STEPS, eps=24), ensemble=ensemble(24, 20))
    report = evaluate(attacks, 'coarse', check_images=1)
    assert says(report['checks'], 'gradient of the loss is exactly 0')
    assert says(report['checks'], 'unbounded budget', 'loss does not rise either')
    pgd, whole = attack_of(report, 'pgd'), attack_of(report, 'ensemble')
    assert says(pgd['checks'], 'on 6 of 6 images the gradient is exactly 0')
    assert says(whole['checks'], 'apgd: on 6 of 6 images the gradient is exactly 0')
    # PGD takes nothing. The ensemble does not depend on gradients alone, and says that
    # those are what failed.
    assert ap(pgd) == ap(report['benign'])
    assert ap(whole) < 0.5 * ap(pgd)
    assert says(
        whole['checks'],
        'square: on the 6 images that every member attacked, AP is',
        'best white-box attack at the same norm and eps (apgd)',
        'although this is a gradient-free attack',
    )
    assert not says(whole['checks'], 'square: on 6 of 6')
    assert 'No warnings.' not in (tmp_path / 'r.md').read_text()


def test_a_detector_with_noise_of_its_own(evaluate):
    pgd = dict(STEPS, num_steps=1)
    report = evaluate(dict(pgd=pgd), 'noisy', check_images=1, num_images=2)
    assert says(report['checks'], 'loss of one image differs', 'under the same seed')
    assert says(report['checks'], 'the detector is randomised')
    # Nobody sees it without the trial.
    unseen = evaluate(dict(pgd=pgd), 'noisy', check_images=0, num_images=2)
    assert unseen['checks'] == []


@MODELS.register_module(force=True)
class Purifying(FCOS):
    """Blurs images before it predicts on them."""

    def predict(self, inputs, *args, **kwargs):
        return super().predict(avg_pool2d(inputs, 3, 1, 1), *args, **kwargs)


def test_purification_in_prediction_alone(evaluate):
    pgd = dict(pgd=dict(STEPS, num_steps=1))
    model = dict(tiny.fcos(), type='Purifying')
    report = evaluate(pgd, model=model, check_images=1, num_images=1)
    assert says(report['checks'], 'its backbone gets other values', '(ranking, also in')


def test_a_defence_without_gradients(evaluate):
    pgd = dict(pgd=dict(STEPS, num_steps=2))
    levels = dict(type='mmrobust.BitDepth', bits=4)
    model = dict(type='mmrobust.Defended', detector=tiny.fcos(), preprocess=levels)
    found = {}
    for adaptive in (True, False):
        settings = dict(model, adaptive=adaptive)
        report = evaluate(pgd, model=settings, check_images=0, num_images=2)
        found[adaptive] = attack_of(report, 'pgd')
        assert ap(report['benign']) > 0.5
    assert ap(found[True]) < 0.5 * ap(found[False])
    assert not says(found[True]['checks'], 'gradient is exactly 0')
    assert says(found[False]['checks'], 'gradient is exactly 0')


def test_boxes_in_another_frame(evaluate, coco):
    overrides = dict(test_dataloader=tiny.loader(coco, test=True, scale=(64, 48)))
    pgd, few = dict(pgd=dict(STEPS, num_steps=2)), dict(num_images=3)
    report = evaluate(pgd, overrides=overrides, gt_frame='input', **few)
    assert says(attack_of(report, 'pgd')['checks'], 'lie outside', '(input)')
    report = evaluate(pgd, overrides=overrides, **few)
    assert attack_of(report, 'pgd')['checks'] == []


@ATTACKS.register_module(force=True)
class Downhill(PGD):
    """PGD with a wrong sign."""

    def perturb(self, oracle, images, generator):
        class Wrong:
            value = oracle.value

            def value_and_grad(self, images):
                values, grads = oracle.value_and_grad(images)
                return values, [-grad for grad in grads]

        return super().perturb(Wrong(), images, generator)


@ATTACKS.register_module(force=True)
class Dud(Attack):
    """Noise that claims to be a search."""

    def perturb(self, oracle, images, generator):
        noise = RandomNoise(self.threat.norm, self.threat.eps)
        return noise.perturb(oracle, images, generator)

    def describe(self):
        return {**super().describe(), 'num_steps': 10, 'objective': 'total'}


def test_attacks_that_are_none(evaluate, coco, monkeypatch):
    # Six images tell too little; as if there were more of them.
    for name in ('map_interval', 'difference_interval'):
        stock = getattr(pass_tables, name)

        def narrow(*tables, stock=stock, **settings):
            found = stock(*tables, **settings)
            ends = dict(low=found.estimate - 0.02, high=found.estimate + 0.02)
            return replace(found, **ends)

        monkeypatch.setattr(pass_tables, name, narrow)
    attacks = dict(noise=NOISE, dud=dict(type='mmrobust.Dud', eps=8), pgd=STEPS)
    report = evaluate(attacks, check_images=0)
    found = {each['name']: each['checks'] for each in report['attacks']}
    assert says(found['dud'], 'no lower than', 'random noise', '(noise')
    assert not says(found['dud'], 'objective is no larger')
    assert found['noise'] == found['pgd'] == []
    # Larger than the images that the detector knows: there, the loss is at its minimum.
    overrides = dict(test_dataloader=tiny.loader(coco, test=True, scale=(144, 108)))
    # In steps so small that none overshoots.
    steps = dict(num_steps=8, step_size=0.05, random_start=False, keep_best=False)
    attacks = dict(downhill=dict(type='mmrobust.Downhill', eps=8, **steps))
    report = evaluate(attacks, overrides=overrides, check_images=0)
    checks = report['attacks'][0]['checks']
    assert says(checks, 'on 6 of 6 images the objective is no larger')
    assert says(checks, 'the attack helps the detector')


def test_an_eps_of_0_is_no_fault_of_the_attack(evaluate):
    """The first point of a curve."""
    steps = dict(STEPS, num_steps=2)
    report = evaluate({'pgd-eps0': dict(steps, eps=0), 'pgd-eps8': steps})
    assert [attack['checks'] for attack in report['attacks']] == [[], []]
    assert ap(attack_of(report, 'pgd-eps0')) == ap(report['benign'])
