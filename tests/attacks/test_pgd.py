"""PGD against optima that are known, and against its own description."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mmrobust.attacks import APGD, PGD, RandomNoise


class Function:
    """An oracle for a known function, which counts what it is asked."""

    def __init__(self, function):
        self.function, self.values, self.grads = function, 0, 0

    def value(self, images):
        self.values += 1
        return torch.stack([self.function(image) for image in images])

    def value_and_grad(self, images):
        self.grads += 1
        leaves = [image.detach().requires_grad_() for image in images]
        values = [self.function(leaf) for leaf in leaves]
        grads = [
            torch.autograd.grad(value, leaf)[0]
            for value, leaf in zip(values, leaves, strict=True)
        ]
        return torch.stack(values).detach(), grads


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _weights() -> Tensor:
    return torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_no_grid_point_beats_it_on_a_curved_function():
    target = torch.tensor([[[131.0, 122.0, 129.5]]])
    clean = torch.full((1, 1, 3), 128.0)

    def function(image: Tensor) -> Tensor:
        return -((image - target) ** 2).sum() + 0.5 * (image[0, 0, 0] - 128)

    attack = PGD(eps=4, step_size='0.2/255', num_steps=80)
    (best,) = attack.perturb(Function(function), [clean], _generator())
    grid = torch.linspace(-4, 4, 33)
    brute = max(
        function(clean + torch.tensor([[delta]]))
        for delta in itertools.product(grid.tolist(), repeat=3)
    )
    # A sign step of 0.2 ends within 0.2 of the inner optimum in each coordinate.
    assert function(best) >= brute - 3 * 0.2**2


def test_the_best_iterate_is_kept():
    clean = torch.full((1, 2, 2), 100.0)

    def narrow(image: Tensor) -> Tensor:
        """Largest at +1, falling beyond it: full steps overshoot."""
        return -((image - clean - 1) ** 2).sum()

    settings = dict(eps=8, step_size=8, num_steps=5, random_start=False)
    (last,) = PGD(**settings, keep_best=False).perturb(
        Function(narrow), [clean], _generator()
    )
    (best,) = PGD(**settings).perturb(Function(narrow), [clean], _generator())
    assert narrow(best) >= narrow(clean) > narrow(last)


@pytest.mark.parametrize(
    'attack', [PGD(eps=8, num_steps=5), APGD('l2', 40, num_steps=10)]
)
def test_restarts_never_make_it_worse(attack):
    clean, values = torch.full((3, 4, 4), 100.0), []

    def wavy(image: Tensor) -> Tensor:
        return torch.sin(image * 1.3).sum()

    for attack.restarts in (1, 3, 9):
        (found,) = attack.perturb(Function(wavy), [clean], _generator())
        values.append(wavy(found).item())
    assert values == sorted(values)
    assert values[2] > values[0]


def test_a_value_that_is_no_number_is_never_chosen():
    clean = torch.full((1, 2, 2), 100.0)

    def broken(image: Tensor) -> Tensor:
        total = (image - clean).sum()
        return torch.where(total > 4, torch.tensor(torch.nan), total)

    (best,) = PGD(eps=4, step_size=1, num_steps=4, random_start=False).perturb(
        Function(broken), [clean], _generator()
    )
    assert broken(best) == 4  # one step: 4 values moved by 1


@pytest.mark.parametrize(
    ('settings', 'values', 'grads'),
    [
        (dict(num_steps=7, random_start=False), 1, 7),
        (dict(num_steps=7, random_start=True), 2, 7),
        (dict(num_steps=7, random_start=False, restarts=3), 3, 21),
        (dict(num_steps=7, random_start=True, keep_best=False), 0, 7),
    ],
)
def test_the_cost_is_what_the_docstring_says(settings, values, grads):
    oracle = Function(lambda image: image.sum())
    PGD(eps=4, **settings).perturb(oracle, [torch.zeros(1, 2, 2)], _generator())
    assert (oracle.values, oracle.grads) == (values, grads)


def test_images_of_a_batch_do_not_share_their_best_iterate():
    images = [torch.full((1, 2, 2), 50.0), torch.full((1, 3, 2), 200.0)]

    def function(image: Tensor) -> Tensor:
        return torch.cos(image / 3).sum()

    attack = PGD(eps=8, step_size=3, num_steps=6, random_start=False)
    together = attack.perturb(Function(function), images, _generator())
    for image, result in zip(images, together, strict=True):
        (alone,) = attack.perturb(Function(function), [image], _generator())
        assert torch.equal(result, alone)


@pytest.mark.parametrize(('norm', 'eps'), [('linf', 20), ('l2', 20), ('l1', 300)])
def test_results_stay_in_the_ball(norm, eps):
    clean = torch.randint(0, 256, (3, 8, 8)).float()
    attack = PGD(norm, eps=eps, num_steps=5, restarts=2)
    oracle = Function(lambda image: torch.sin(image).sum())
    (best,) = attack.perturb(oracle, [clean], _generator())
    assert attack.threat.distance(clean, best) <= eps * (1 + 1e-5)
    assert 0 <= best.min() <= best.max() <= 255


def test_noise_asks_nothing_and_reaches_the_boundary():
    oracle = Function(lambda image: image.sum())
    clean = torch.full((3, 4, 4), 100.0)
    (noisy,) = RandomNoise(eps=8).perturb(oracle, [clean], _generator())
    assert (oracle.values, oracle.grads) == (0, 0)
    assert torch.equal((noisy - clean).abs(), torch.full_like(clean, 8))
