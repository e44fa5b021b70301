"""The threat model: projections, steps, random images, and reading sizes."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mmrobust.errors import ConfigError
from mmrobust.threat import ThreatModel


NORMS = ('linf', 'l2', 'l1')


@pytest.mark.parametrize('norm', NORMS)
def test_nothing_moves_without_a_reason(norm):
    clean = torch.randint(0, 256, (3, 7, 9), generator=torch.Generator()).float()
    zero, inner = torch.zeros_like(clean), (clean + 0.5).clamp(0, 255)
    none, some = ThreatModel(norm, 0), ThreatModel(norm, 200)
    assert torch.equal(some.step(clean, zero, 2.0), clean)
    torch.testing.assert_close(some.project(clean, inner), inner)
    assert torch.equal(none.project(clean, inner), clean)
    assert torch.equal(none.project_delta(inner - clean), zero)


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


def _nearest_by_slsqp(clean, point, eps):
    """The nearest point of ball and pixel range, in variables +part and -part."""
    size = clean.size

    def delta(parts):
        return parts[:size] - parts[size:]

    def slope(parts):
        residual = 2 * (clean + delta(parts) - point) / 255
        return np.concatenate([residual, -residual])

    result = minimize(
        lambda parts: ((clean + delta(parts) - point) ** 2).sum() / 255,
        np.zeros(2 * size),
        jac=slope,
        bounds=[(0, 255 - value) for value in clean] + [(0, value) for value in clean],
        constraints={
            'type': 'ineq',
            'fun': lambda parts: eps - parts.sum(),
            'jac': lambda parts: -np.ones_like(parts),
        },
        method='SLSQP',
        options={'maxiter': 500, 'ftol': 1e-12},
    )
    return clean + delta(result.x)


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('eps', [5, 60, 400])
def test_projection_is_the_nearest_point(seed, eps):
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 256, 6).astype(float)
    clean[:2] = 0, 255
    point = clean + rng.normal(0, 120, 6)
    nearest = _nearest_by_slsqp(clean, point, eps)
    ours = ThreatModel('l1', eps).project(
        torch.tensor(clean).view(1, 2, 3), torch.tensor(point).view(1, 2, 3)
    )
    ours = ours.numpy().ravel()
    np.testing.assert_allclose(ours, nearest, atol=2e-3)
    assert np.abs(ours - clean).sum() <= eps * (1 + 1e-12)
    assert 0 <= ours.min() <= ours.max() <= 255
    # The solver finds nothing nearer.
    distance, theirs = ((ours - point) ** 2).sum(), ((nearest - point) ** 2).sum()
    assert distance <= theirs * (1 + 1e-7) + 1e-9


def test_l1_projection_by_hand():
    clean = torch.tensor([[[2.0, 254.0, 100.0]]])
    point = torch.tensor([[[-30.0, 290.0, 109.0]]])
    # The ends of the range take 2 and 1, the third value the 4 that remain.
    expected = torch.tensor([[[0.0, 255.0, 104.0]]])
    torch.testing.assert_close(ThreatModel('l1', 7).project(clean, point), expected)
    delta = torch.tensor([[[5.0, -3.0, 1.0]]])
    # Shrinking all by 1.5 leaves 3.5 + 1.5 = 5.
    expected = torch.tensor([[[3.5, -1.5, 0.0]]])
    torch.testing.assert_close(ThreatModel('l1', 5).project_delta(delta), expected)
    torch.testing.assert_close(ThreatModel('l1', 9).project_delta(delta), delta)


def test_many_values_and_an_outlier_hit_the_radius():
    # The multiplier in float32 is too coarse for 150,000 values by itself.
    many = 50 * torch.rand((2, 3, 224, 224), generator=torch.Generator()) + 1e4
    many[0, 0, 0, 0] = -2e4
    many[1] = 1e4
    kept = ThreatModel('l1', 510000).project_delta(many).double().abs()
    torch.testing.assert_close(
        kept.sum((1, 2, 3)), torch.full((2,), 510000.0).double(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ('norm', 'eps'),
    [
        *(('linf', eps) for eps in (4, 2.5)),
        *(('l2', eps) for eps in (60, 510)),
        *(('l1', eps) for eps in (0, 1, 510, 19125, 1e9)),
    ],
)
@pytest.mark.parametrize('spread', [1e-3, 1, 300, 1e6])
def test_large_images_stay_in_both_sets(norm, eps, spread):
    generator = torch.Generator().manual_seed(1)
    # A constant half: rounding errors of equal values have equal signs.
    clean = torch.full((3, 224, 224), 200.0)
    clean[:, ::2] = torch.randint(0, 256, (3, 112, 224), generator=generator).float()
    clean[0, 0], clean[1, 0] = 0, 255
    far = clean + spread * torch.randn(clean.shape, generator=generator)
    threat = ThreatModel(norm, eps)
    once = threat.project(clean, far)
    assert 0 <= once.min() <= once.max() <= 255
    true_size = threat.distance(clean.double(), once.double())
    # linf bounds are exact for whole-number pixels; others up to rounding.
    assert true_size <= eps * (1 if norm == 'linf' else 1 + 1e-5)
    assert threat.distance(clean, once) <= eps * (1 + 1e-5)
    torch.testing.assert_close(threat.project(clean, once), once, rtol=0, atol=2e-3)
    if norm != 'l1':
        return
    if (far - clean).clamp(-clean, 255 - clean).abs().sum() > 1.01 * eps > 400:
        assert true_size > eps * (1 - 3e-3)  # on the sphere, not just inside


@pytest.mark.parametrize('norm', ['l1', 'l2'])
def test_equal_values_do_not_add_up_to_too_much(norm):
    # Each value would move by half a unit in the last place, which rounds up.
    clean = torch.full((3, 224, 224), 200.0)
    eps = 0.8 * (clean.numel() if norm == 'l1' else clean.numel() ** 0.5) * 2**-16
    threat = ThreatModel(norm, eps)
    moved = threat.project(clean, clean + 1)
    assert threat.distance(clean, moved) <= eps * (1 + 1e-5)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_a_batch_is_its_images_one_by_one(norm):
    generator = torch.Generator().manual_seed(5)
    clean = torch.randint(0, 256, (4, 3, 6, 7), generator=generator).float()
    grad = torch.randn(clean.shape, generator=generator)
    threat = ThreatModel(norm, {'linf': 8, 'l2': 60, 'l1': 300}[norm])
    sizes = torch.tensor([1.0, 40.0, 200.0, 900.0])
    shares = torch.tensor([0.01, 0.1, 0.5, 1.0])
    moved = threat.step(clean, grad, sizes, shares)
    projected = threat.project(clean, moved)
    distances = threat.distance(clean, projected)
    assert distances.shape == (4,)
    for i in range(4):
        one = threat.step(clean[i], grad[i], sizes[i].item(), shares[i].item())
        torch.testing.assert_close(moved[i], one)
        one = threat.project(clean[i], one)
        torch.testing.assert_close(projected[i], one)
        torch.testing.assert_close(distances[i], threat.distance(clean[i], one))
        torch.testing.assert_close(
            threat.project_delta(moved - clean)[i],
            threat.project_delta(moved[i] - clean[i]),
        )


def test_step_moves_the_largest_gradients_by_equal_amounts():
    clean = torch.zeros(1, 2, 5)
    grad = torch.tensor([[[1.0, -9, 2, 3, -4], [5, -6, 7, -8, 0]]]) * 1e-30
    moved = ThreatModel('l1', 10).step(clean, grad, 6.0, share=0.3)
    expected = torch.tensor([[[0.0, -2, 0, 0, 0], [0, 0, 2, -2, 0]]])
    torch.testing.assert_close(moved, expected)
    # By default one percent, and never fewer than one value.
    moved = ThreatModel('l1', 10).step(clean, grad, 6.0)
    assert moved[0, 0, 1] == -6
    assert moved.count_nonzero() == 1
    # Of ten values with a gradient in two, a step of all moves two.
    grad = torch.zeros_like(clean)
    grad[0, 0, 0], grad[0, 1, 1] = 1, -2
    moved = ThreatModel('l1', 10).step(clean, grad, 6.0, share=0.9)
    assert (moved[0, 0, 0], moved[0, 1, 1]) == (3, -3)


def test_random_start_is_uniform_in_the_ball():
    clean = torch.full((1, 1, 2), 128.0)
    threat = ThreatModel('l1', 30)
    generator = torch.Generator().manual_seed(0)
    deltas = torch.stack(
        [threat.random_start(clean, generator) - clean for _ in range(2000)]
    ).flatten(1)
    sizes = deltas.abs().sum(1)
    assert sizes.max() <= 30 * (1 + 1e-5)
    # Half the radius holds a quarter of the area, and so does every quadrant.
    assert (sizes <= 15).float().mean() == pytest.approx(0.25, abs=0.03)
    for signs in itertools.product((-1, 1), repeat=2):
        inside = (deltas.sign() == torch.tensor(signs)).all(1).float().mean()
        assert inside == pytest.approx(0.25, abs=0.03)
    # Uniform along an edge, not gathered at its middle or its ends.
    along = deltas[:, 0].abs() / sizes
    assert (along < 0.25).float().mean() == pytest.approx(0.25, abs=0.03)


def test_unknown_norm_names_the_known_ones():
    with pytest.raises(ConfigError, match='linf, l2, l1'):
        ThreatModel('l7', 4)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_a_region_takes_the_whole_ball(norm):
    """Projecting and drawing inside of a region is that of the region alone."""
    region = torch.zeros(1, 6, 7, dtype=torch.bool)
    region[:, 1:4, 2:7] = True
    clean = torch.full((3, 6, 7), 128.0)
    far = clean + 40 * torch.randn(clean.shape, generator=torch.Generator())
    threat = ThreatModel(norm, {'linf': 8, 'l2': 60, 'l1': 300}[norm])
    inner = threat.within(region, clean)
    projected = inner.project(clean, far)
    assert torch.equal(projected[:, ~region[0]], clean[:, ~region[0]])
    alone = threat.project(clean[:, 1:4, 2:7], far[:, 1:4, 2:7])
    torch.testing.assert_close(projected[:, 1:4, 2:7], alone)
    edge = inner.random_boundary(clean, torch.Generator())
    assert threat.distance(clean, edge) == pytest.approx(threat.eps, rel=1e-5)
    assert inner.size(clean) == 45
    window, cut = inner.window()
    assert clean[window].shape == (3, 3, 5)
    assert cut == threat
    assert cut.region is None
    assert threat.within(None, clean) is threat
