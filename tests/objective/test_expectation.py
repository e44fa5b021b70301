"""Answers averaged over draws."""

import pytest
import torch

from mmrobust.attacks import APGD, PGD, Ensemble, attack_preset
from mmrobust.errors import ConfigError
from mmrobust.objective import expected
from mmrobust.registry import ATTACKS
from mmrobust.utils.seeding import seeded

CPU = torch.device('cpu')
SLOPE = torch.linspace(-1, 1, 3 * 200 * 200).view(3, 200, 200)


class Noisy:
    """A linear objective whose slope has noise of variance 1, drawn in each call."""

    regions = None
    forwards = 0

    def value(self, images):
        return self.value_and_grad(images)[0]

    def value_and_grad(self, images):
        self.forwards += len(images)
        slopes = [SLOPE + torch.randn(SLOPE.shape) for _ in images]
        pairs = zip(images, slopes, strict=True)
        return torch.stack([(image * slope).sum() for image, slope in pairs]), slopes


def images(count=1):
    return [torch.full(SLOPE.shape, 100.0) for _ in range(count)]


@pytest.mark.parametrize('draws', [1, 4, 16])
def test_the_variance_of_a_gradient_falls_with_the_draws(draws):
    oracle = expected(Noisy(), draws)
    with seeded(0, CPU):
        _, (grad,) = oracle.value_and_grad(images())
        _, (other,) = oracle.value_and_grad(images())
    # Of n values the estimate of a variance has the relative error (2 / n) ** 0.5.
    for error in (grad - SLOPE, other - SLOPE):
        assert float(error.square().mean()) == pytest.approx(1 / draws, rel=0.02)
    assert not torch.equal(grad, other)
    assert oracle.forwards == 2 * draws
    assert oracle.regions is None


def test_an_answer_is_the_mean_of_draws_one_after_the_other():
    with seeded(0, CPU):
        singles = [Noisy().value_and_grad(images(2)) for _ in range(3)]
    for ask in ('value_and_grad', 'value'):
        with seeded(0, CPU):
            found = getattr(expected(Noisy(), 3), ask)(images(2))
        values = found[0] if ask == 'value_and_grad' else found
        torch.testing.assert_close(values, sum(value for value, _ in singles) / 3)
        if ask == 'value_and_grad':
            for place in range(2):
                mean = sum(grads[place] for _, grads in singles) / 3
                torch.testing.assert_close(found[1][place], mean)
    oracle = Noisy()
    assert expected(oracle, 1) is oracle


def test_who_averages():
    for name in ('fgsm', 'pgd', 'apgd', 'mim', 'square', 'ranking'):
        attack = ATTACKS.build(attack_preset(name, eot=3))
        assert attack.eot == attack.describe()['eot'] == 3
    assert (PGD().eot, APGD().eot, Ensemble().describe()['eot']) == (1, 1, 1)
    found = Ensemble(eot=3)
    assert found.describe()['eot'] == 3
    assert {member.eot for member in found.members.values()} == {3}
    with pytest.raises(ConfigError, match='eot=0'):
        PGD(eot=0)
