"""Attacks on images of which only a region may change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks.functions import Recorder, generator, normal
from mmrobust.attacks import APGD, PGD, Attack, RandomNoise, Square, TransferPGD
from mmrobust.threat import ThreatModel
from torch import Tensor
from torch.nn.functional import pad

RADII = {'linf': 8.0, 'l2': 128.0, 'l1': 1530.0}
SIZE = (12, 10)  # of the picture
EDGES = (3, 2, 4, 5)  # of the padding: left, right, top, bottom


class Padded(Recorder):
    """A function of images with padding, which gradients do not spare."""

    def __init__(self, function, region: Tensor, count: int = 1) -> None:
        super().__init__(function)
        self.regions = [region] * count


def rectangle() -> Tensor:
    return pad(torch.ones(1, *SIZE, dtype=torch.bool), EDGES)


def scattered() -> Tensor:
    return rectangle() & (torch.rand(21, 15, generator=generator(4)) < 0.7)


def picture() -> Tensor:
    return torch.randint(60, 196, (3, *SIZE), generator=generator(2)).float()


def whole() -> Tensor:
    return pad(picture(), EDGES, value=114.0)


def weights() -> Tensor:
    return normal(3, 21, 15)


def linear(image: Tensor) -> Tensor:
    return (image * weights()).sum()


def attacks(norm: str) -> dict[str, Attack]:
    eps = RADII[norm]
    few: dict[str, Any] = dict(norm=norm, eps=eps, restarts=2)
    found: dict[str, Attack] = {
        'noise': RandomNoise(norm=norm, eps=eps),
        'pgd': PGD(num_steps=5, **few),
        'last': PGD(num_steps=3, keep_best=False, **few),
        'apgd': APGD(num_steps=6, **few),
        'square': Square(num_queries=15, objective='total', **few),
    }
    if norm == 'l1':
        radii = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
        found['larger'] = APGD(num_steps=10, radius_schedule=radii, **few)
    else:
        found['mim'] = TransferPGD(**few)
        found['dim'] = TransferPGD(diversity_prob=0.5, kernel_size=5, **few)
    return found


@pytest.mark.parametrize('shape', [rectangle, scattered])
@pytest.mark.parametrize('norm', list(RADII))
def test_no_attack_leaves_the_region(norm, shape):
    region = shape()
    threat = ThreatModel(norm, RADII[norm])
    images = [whole(), whole() / 2]
    for name, attack in attacks(norm).items():
        oracle = Padded(linear, region, 2)
        found = attack.perturb(oracle, images, generator())
        for image, clean in zip(found, images, strict=True):
            changed = (image != clean).any(0, keepdim=True)
            assert not (changed & ~region).any(), name
            assert (changed & region).any(), name
            assert threat.distance(clean, image) <= RADII[norm] * (1 + 1e-5)
        for point in oracle.points:  # also no random start, nor window of Square
            moved = (point != images[0]).any(0, keepdim=True)
            assert name == 'dim' or not (moved & ~region).any(), name


@pytest.mark.parametrize('shape', [rectangle, scattered])
@pytest.mark.parametrize('norm', list(RADII))
@pytest.mark.parametrize('name', ['pgd', 'apgd', 'apgd of many'])
def test_optimum_of_a_linear_function(name, norm, shape):
    """eps times the dual norm of the weights, of those inside of the region."""
    region, clean = shape(), torch.full((3, 21, 15), 127.5)
    eps = RADII[norm]
    few: dict[str, Any] = dict(norm=norm, eps=eps, random_start=False, num_steps=100)
    attack: Attack = PGD(**few) if name == 'pgd' else APGD(topk_share=0.05, **few)
    count = 3 if 'many' in name else 1
    oracle = Padded(linear, region, count)
    found = attack.perturb(oracle, [clean] * count, generator())
    inside = (weights() * region).abs()
    # In l1 the largest of them, each as far as the pixel range goes: 12 times.
    largest = inside.flatten().topk(12).values
    best = {
        'linf': eps * inside.sum(),
        'l2': eps * inside.square().sum().sqrt(),
        'l1': 127.5 * largest.sum(),
    }[norm]
    for image in found:
        gain = float(linear(image).double() - linear(clean).double())
        assert gain == pytest.approx(float(best), rel=5e-3)


@pytest.mark.parametrize('norm', list(RADII))
@pytest.mark.parametrize('name', ['pgd', 'apgd', 'square', 'mim', 'tim'])
def test_padding_makes_no_difference(name, norm):
    """What is found is what is found on the picture alone."""
    if norm == 'l1' and name in ('mim', 'tim'):
        return
    few: dict[str, Any] = dict(norm=norm, eps=RADII[norm])
    attack = {
        'pgd': lambda: PGD(random_start=False, **few),
        'apgd': lambda: APGD(random_start=False, num_steps=12, **few),
        'square': lambda: Square(num_queries=60, objective='total', **few),
        'mim': lambda: TransferPGD(**few),
        'tim': lambda: TransferPGD(kernel_size=5, **few),
    }[name]()

    def wavy(image: Tensor) -> Tensor:
        return torch.sin(image.double() * weights().double() / 100).sum()

    def alone(image: Tensor) -> Tensor:
        # Sums in the same order, so that both see the same numbers.
        return wavy(pad(image, EDGES, value=114.0))

    (found,) = attack.perturb(Padded(wavy, rectangle()), [whole()], generator())
    (expected,) = attack.perturb(Recorder(alone), [picture()], generator())
    left, right, top, bottom = EDGES
    inside = found[:, top:-bottom, left:-right]
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-3)
    assert (expected - picture()).abs().max() > 1


@pytest.mark.parametrize('norm', list(RADII))
def test_a_region_of_all_pixels_changes_no_bit(norm):
    all_of_it = torch.ones(1, 21, 15, dtype=torch.bool)
    for name, attack in attacks(norm).items():
        (with_one,) = attack.perturb(Padded(linear, all_of_it), [whole()], generator())
        (without,) = attack.perturb(Recorder(linear), [whole()], generator())
        assert torch.equal(with_one, without), name


def test_nothing_to_change():
    nothing = torch.zeros(1, 21, 15, dtype=torch.bool)
    for norm in RADII:
        for attack in attacks(norm).values():
            (found,) = attack.perturb(Padded(linear, nothing), [whole()], generator())
            assert torch.equal(found, whole())
