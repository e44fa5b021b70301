"""The threat model: projections, steps, random images, and reading sizes."""

from __future__ import annotations

import math

import pytest
import torch

from mmrobust.attacks import PGD
from mmrobust.training import PGDAdversary
from mmrobust.errors import ConfigError
from mmrobust.threat import ThreatModel, to_pixels


def _image(seed: int = 0) -> torch.Tensor:
    """Whole-number pixels, some of them at the ends of the range."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 7, 9), generator=generator).float()
    image[0, 0] = 0
    image[1, 0] = 255
    return image


@pytest.mark.parametrize(
    ('norm', 'eps'), [('linf', 4), ('linf', 2.5), ('l2', 60), ('l1', 900)]
)
def test_projection_is_inside_both_sets_and_idempotent(norm, eps):
    threat, clean = ThreatModel(norm, eps), _image()
    far = clean + 80 * torch.randn(clean.shape, generator=torch.Generator())
    once = threat.project(clean, far)
    assert once.min() >= 0
    assert once.max() <= 255
    # linf bounds are exact for whole-number pixels; others up to rounding.
    assert threat.distance(clean, once) <= eps * (1 if norm == 'linf' else 1 + 1e-6)
    torch.testing.assert_close(threat.project(clean, once), once, rtol=0, atol=1e-4)
    if norm == 'linf':
        assert torch.equal(threat.project(clean, once), once)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_projection_leaves_inner_points_alone(norm):
    threat, clean = ThreatModel(norm, 50), torch.full((3, 4, 4), 100.0)
    inner = clean + 1
    torch.testing.assert_close(threat.project(clean, inner), inner)


def test_l2_projection_scales_onto_the_sphere():
    clean = torch.full((1, 1, 2), 100.0)
    moved = ThreatModel('l2', 5).project(clean, clean + torch.tensor([[[30.0, 40.0]]]))
    # (30, 40) has length 50: scaled to (3, 4).
    torch.testing.assert_close(moved, clean + torch.tensor([[[3.0, 4.0]]]))


@pytest.mark.parametrize('scale', [1.0, 1e-20, 1e-35])
def test_l2_step_has_the_given_length_whatever_the_gradient_scale(scale):
    clean = torch.zeros(3, 5, 5)
    grad = torch.randn(clean.shape, generator=torch.Generator()) * scale
    moved = ThreatModel('l2', 100).step(clean, grad, 7.0)
    assert moved.norm() == pytest.approx(7.0, rel=1e-4)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_zero_gradient_does_not_move(norm):
    clean = _image()
    moved = ThreatModel(norm, 4).step(clean, torch.zeros_like(clean), 2.0)
    assert torch.equal(moved, clean)


@pytest.mark.parametrize(('norm', 'eps'), [('linf', 8), ('l2', 100), ('l1', 2000)])
def test_random_images(norm, eps):
    threat, clean = ThreatModel(norm, eps), torch.full((3, 16, 16), 128.0)
    draws = [
        draw(clean, torch.Generator().manual_seed(seed))
        for draw in (threat.random_start, threat.random_boundary)
        for seed in (1, 1, 2)
    ]
    for first, again, other in (draws[:3], draws[3:]):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert threat.distance(clean, first) <= eps * (1 + 1e-5)
    # Far from the ends of the range, noise reaches the boundary.
    assert threat.distance(clean, draws[3]) == pytest.approx(eps, rel=1e-5)
    # A uniform start is somewhere inside: its mean size is eps / 2 for linf.
    if norm == 'linf':
        assert (draws[0] - clean).abs().mean() == pytest.approx(eps / 2, rel=0.1)


@pytest.mark.parametrize('eps', [30, 400, 3000])
@pytest.mark.parametrize('spread', [0.5, 3])
def test_l2_projection_is_the_nearest_point(eps, spread):
    """Against bisection: the nearest point is the change, shrunk and then cut off."""
    generator = torch.Generator().manual_seed(1)
    clean = 255 * torch.rand((3, 20, 20), generator=generator) ** 6
    clean[:, :5], clean[:, 5:8] = 0, 255
    delta = 40 * torch.randn(clean.shape, generator=generator)
    delta *= torch.exp(spread * torch.randn(clean.shape, generator=generator))
    low, high = -clean.double(), 255 - clean.double()
    least, most = 0.0, 1.0
    for _ in range(100):
        middle = (least + most) / 2
        fits = (middle * delta.double()).clamp(low, high).norm() <= eps
        least, most = (middle, most) if fits else (least, middle)
    nearest = (most * delta.double()).clamp(low, high)
    found = ThreatModel('l2', eps).project(clean, clean + delta)
    assert (found - clean).norm() <= eps * (1 + 1e-6)
    torch.testing.assert_close(found.double() - clean, nearest, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ('given', 'pixels'),
    [(4, 4), ('4', 4), ('4/255', 4), ('0.5/255', 0.5), (0, 0), ('1/51', 5), (1.5, 1.5)],
)
def test_sizes_in_pixel_units(given, pixels):
    assert to_pixels(given) == pytest.approx(pixels, rel=1e-12)


def test_the_unit_scale_is_refused_with_the_value_that_was_meant():
    with pytest.raises(ConfigError, match=r'eps=4\.08'):
        to_pixels(0.016)


@pytest.mark.parametrize(
    ('norm', 'radius', 'meant'),
    [('l2', 2, '510'), ('l2', 5, '1275'), ('l1', 75, '19125')],
)
def test_radii_of_papers_for_unit_images_are_refused(norm, radius, meant):
    """l2 and l1 radii for [0, 1] images are whole numbers that look like pixels."""
    with pytest.raises(ConfigError, match=f'write eps={meant} if that was meant'):
        to_pixels(radius, norm=norm)
    with pytest.raises(ConfigError, match='looks like the'):
        PGD(norm, radius)
    with pytest.raises(ConfigError, match='looks like the'):
        PGDAdversary(norm, radius)
    assert PGD(norm, f'{radius}/255').threat.eps == radius  # really that small
    assert to_pixels(float(meant), norm=norm) == float(meant)


@pytest.mark.parametrize(
    'given', [-1, '-4/255', math.nan, math.inf, 'four', '4/0', None, True, '1/2/3']
)
def test_no_size(given):
    with pytest.raises(ConfigError, match='pixel units'):
        to_pixels(given)


def test_unknown_norm_names_the_known_ones():
    with pytest.raises(ConfigError, match='linf, l2, l1'):
        ThreatModel('l7', 4)
