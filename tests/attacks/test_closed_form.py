"""Every attack in every norm against the best that the threat model allows.

The objectives are separable and concave, so that their optimum within ball and pixel
range is known: by formula, by bisection on the multiplier of the ball (l2, curved l1),
or by giving the radius to the largest weights first (linear l1). What an attack lacks
of it, in percent, is written down in one table, for images that are black, white and
grey, have one channel or one pixel, and go through an attack in one batch. The table
must also fail attacks that are broken on purpose.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from scipy.signal import convolve2d

from mmrobust.attacks import LARGER_RADII, Ensemble, attack_preset
from mmrobust.attacks.ensemble import VERSIONS
from mmrobust.attacks.square import _Run
from mmrobust.registry import ATTACKS
from mmrobust.threat import ThreatModel

NORMS = ('linf', 'l2', 'l1')
RADII = {'linf': 8.0, 'l2': 100.0, 'l1': 600.0}
# Every image of the pixel range is nearer than this to every other one.
UNBOUNDED = {'linf': 300.0, 'l2': 1e5, 'l1': 1e6}


def _generator(seed=3):
    return torch.Generator().manual_seed(seed)


def _images():
    generator = _generator(0)
    edges = torch.randint(0, 256, (3, 6, 6), generator=generator).float()
    edges[:, :2], edges[:, 2:4] = 0, 255
    return {
        'middle': torch.full((3, 6, 6), 127.5),
        'edges': edges,
        'gray': torch.randint(0, 256, (1, 14, 15), generator=generator).float(),
        'pixel': torch.tensor([0.0, 255.0, 100.0]).view(3, 1, 1),
        'white': torch.full((3, 5, 6), 255.0),
    }


class Objective:
    """sum(w * d - q * d**2 / 2) of the perturbation d, with own w and q per image.

    Args:
        kind: ``'linear'``; ``'flat'`` with nearly one weight per channel, which
            smoothing and moving the image hardly change; or ``'curved'`` with
            peaks inside and outside the ball, valleys up to 30 times as wide as others.
    """

    def __init__(self, kind, images):
        self.images, self.weights, self.curvatures = images, [], []
        for seed, image in enumerate(images):
            generator = _generator(seed + 1)
            first, second = torch.randn(
                (2, *image.shape), generator=generator, dtype=torch.float64
            )
            if kind == 'flat':
                first = first[:, :1, :1] * (1 + second / 50)
            curvature = torch.exp(0.7 * second) * (kind == 'curved')
            self.weights.append(first * (30 * curvature if kind == 'curved' else 1))
            self.curvatures.append(curvature)

    def exact(self, images):
        terms = zip(images, self.images, self.weights, self.curvatures, strict=True)
        return [
            float((w * (x.double() - c) - q * (x.double() - c) ** 2 / 2).sum())
            for x, c, w, q in terms
        ]

    def value(self, images):
        return torch.tensor(self.exact(images))

    def value_and_grad(self, images):
        terms = zip(images, self.images, self.weights, self.curvatures, strict=True)
        grads = [(w - q * (x.double() - c)).float() for x, c, w, q in terms]
        return self.value(images), grads


def _optimum(norm, eps, weights, curvature, clean):
    w, q, low, high = (
        np.asarray(part, dtype=float).ravel()
        for part in (weights, curvature, -clean, 255 - clean)
    )

    def at(multiplier):
        """The best point if length costs that much."""
        with np.errstate(divide='ignore', invalid='ignore'):
            if norm == 'l2':
                return np.clip(np.nan_to_num(w / (q + multiplier)), low, high)
            shrunk = np.sign(w) * np.maximum(abs(w) - multiplier, 0)
            return np.clip(shrunk / q, low, high)

    if norm == 'linf':
        with np.errstate(divide='ignore'):
            best = np.clip(w / q, np.maximum(low, -eps), np.minimum(high, eps))
    elif norm == 'l1' and not q.any():
        best, left = np.zeros_like(w), eps
        for i in np.argsort(-abs(w)):
            size = min(high[i] if w[i] > 0 else -low[i], left)
            best[i], left = np.sign(w[i]) * size, left - size
    else:
        order = 2 if norm == 'l2' else 1
        cheap, dear = 1e-9, 1e6
        for _ in range(70):  # down to rounding
            middle = (cheap + dear) / 2
            long = np.linalg.norm(at(middle), order) > eps
            cheap, dear = (middle, dear) if long else (cheap, middle)
        best = at(dear)
    return float((w * best - q * best**2 / 2).sum())


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('curved', [False, True])
@pytest.mark.parametrize('eps', [20, 150, 1e4])
def test_the_optima_are_those_of_a_solver(norm, curved, eps):
    rng = np.random.default_rng(0)
    clean, w = np.array([0, 255, 3, 251, 90.0]), rng.normal(size=5)
    q = rng.uniform(0.5, 2, 5) * curved / 30
    found = _optimum(norm, eps, w, q, torch.tensor(clean))
    # d = up - down, so that sizes are linear.
    bounds = [(0, 255 - c) for c in clean] + [(0, c) for c in clean]
    start = np.minimum([b for _, b in bounds], 0.1)

    def loss(x):
        d = x[:5] - x[5:]
        return -(w * d - q * d**2 / 2).sum()

    if norm == 'linf':
        bounds = [(0, min(eps, b)) for _, b in bounds]
    if norm != 'l2' and not curved:
        ball = ([np.ones(10)], [eps]) if norm == 'l1' else (None, None)
        value = -linprog(np.append(-w, w), *ball, bounds=bounds).fun
    else:
        length = {'linf': np.zeros_like, 'l1': np.sum, 'l2': lambda x: (x**2).sum()}
        size = eps**2 if norm == 'l2' else eps
        inside = {'type': 'ineq', 'fun': lambda x: 1 - np.sum(length[norm](x)) / size}
        value = -minimize(
            loss,
            start,
            bounds=bounds,
            constraints=[inside],
            method='SLSQP',
            options=dict(maxiter=2000, ftol=1e-12),
        ).fun
    assert found == pytest.approx(value, rel=1e-4)


# Percent of the optimum that the worst image may lack; None where an attack makes no
# promise, but must stay in the threat model all the same. Single steps, and those of
# fixed size, cannot follow curvature. One percent of the values in a step of l1 is too
# few for much in few steps. Inputs that move and smooth gradients suit smooth weights.
#     attack            norm    flat linear curved unbounded
TABLE = [
    ('fgsm', 'linf', 1e-3, 1e-3, None, 1e-3),
    ('fgsm', 'l2', 2, 3, None, 0.1),
    ('fgsm', 'l1', None, None, None, None),
    ('pgd', 'linf', 1e-3, 1e-3, 0.1, 1e-3),
    ('pgd', 'l2', 4, 4, 2, 1e-3),
    ('pgd', 'l1', None, 9, None, 50),
    ('pgd-60', 'l2', 4, 4, 1, 1e-3),
    ('pgd-60', 'l1', 10, 8, 30, 1e-3),
    ('apgd', 'linf', 1e-3, 1e-3, 0.01, 1e-3),
    ('apgd', 'l2', 0.1, 0.1, 0.1, 1e-3),
    ('apgd', 'l1', 1, 6, 3, 1e-3),
    ('apgd-60', 'l2', 0.01, 0.01, 0.01, 1e-3),
    ('apgd-60', 'l1', 1, 6, 3, 1e-3),
    ('apgd-radii', 'linf', 1e-3, 1e-3, 0.3, 1e-3),
    ('apgd-radii', 'l2', 0.1, 0.1, 1, 1e-3),
    ('apgd-one-radius', 'l1', 1, 2, 4, 1e-3),
    ('mim', 'linf', 1e-3, 1e-3, 1, 1e-3),
    ('mim', 'l2', 1, 1, None, 0.1),
    ('dim', 'linf', 1e-3, 30, None, 30),
    ('dim', 'l2', 1, 30, None, 30),
    ('tim', 'linf', 1e-3, None, None, None),
    ('tim', 'l2', 6, None, None, None),
    ('square', 'linf', 15, 25, None, None),
    ('square', 'l2', 80, 80, None, None),
    ('square', 'l1', 60, 80, None, None),
]
# Square in l2 and l1 brightens one half of a square and darkens the other in every
# channel. On white it can only darken, all channels alike.
BLIND = {('square', 'l2'): 'white', ('square', 'l1'): 'white'}
KINDS = ('flat', 'linear', 'curved', 'unbounded')
ROWS = {(row[0], row[1]): dict(zip(KINDS, row[2:], strict=True)) for row in TABLE}


def _attack(name, norm, eps):
    base, _, variant = name.partition('-')
    steps = int(variant) if variant.isdigit() else None
    if base == 'square':
        steps = 500 if norm == 'linf' else 100
    config = attack_preset(base, norm, eps, num_steps=steps)
    if variant == 'radii':  # those of SEA for linf
        config['radius_schedule'] = ((2, 0.3), (1.5, 0.3), (1, 0.4))
    if variant == 'one-radius':
        assert config.pop('radius_schedule') == LARGER_RADII
    return ATTACKS.build(config)


def _check(attack, kind, limit, blind='', judged=None):
    """Fails unless all images are in the threat model and near enough to the best.

    Args:
        limit: percent of the optimum that an image may lack.
        blind: an image that may lack everything.
        judged: makes other weights of the objective's, whose optimum counts.
    """
    norm, eps = attack.threat.norm, attack.threat.eps
    names, images = zip(*_images().items(), strict=True)
    objective = Objective('linear' if kind == 'unbounded' else kind, list(images))
    found = attack.perturb(
        objective, list(images), [_generator(seed) for seed in range(len(images))]
    )
    order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
    for image, untouched, result in zip(images, _images().values(), found, strict=True):
        assert torch.equal(image, untouched)
        assert (result.shape, result.dtype) == (image.shape, image.dtype)
        assert 0 <= result.min() <= result.max() <= 255
        delta = (result.double() - image.double()).flatten().numpy()
        assert np.linalg.norm(delta, order) <= eps * (1 + 1e-6)
    if judged:
        objective.weights = [judged(w) for w in objective.weights]
    values = objective.exact(found)
    for name, value, w, q, clean in zip(
        names, values, objective.weights, objective.curvatures, images, strict=True
    ):
        best = _optimum(norm, eps, w, q, clean)
        lacks = 100 * (1 - value / best) if best else 100 * abs(value)
        wanted = np.inf if limit is None else 100 if name == blind else limit
        assert -1e-3 <= lacks <= wanted, f'{name}: {lacks:.3g} % below the optimum'


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('name', 'norm'), ROWS)
def test_what_is_lacking_of_the_optimum(name, norm, kind):
    eps = (UNBOUNDED if kind == 'unbounded' else RADII)[norm]
    blind = BLIND.get((name, norm), '')
    _check(_attack(name, norm, eps), kind, ROWS[name, norm][kind], blind)


@pytest.mark.parametrize(('norm', 'limit'), [('linf', 1e-3), ('l2', 1)])
def test_smoothed_gradients_reach_the_optimum_of_smoothed_weights(norm, limit):
    places = np.arange(-7, 8)
    bell = np.exp(-(places[:, None] ** 2 + places**2) * 3 / (2 * 7**2))

    def smoothed(weights):
        planes = [convolve2d(plane, bell / bell.sum(), 'same') for plane in weights]
        return torch.from_numpy(np.stack(planes))

    attack = _attack('tim', norm, RADII[norm])
    attack.decay = 0.0
    _check(attack, 'linear', limit, judged=smoothed)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('version', VERSIONS)
def test_members_of_the_ensemble(norm, version):
    limits = {
        'linf': {'linear': 1e-3, 'curved': 0.3},
        'l2': {'linear': 1, 'curved': 1},
        'l1': {'linear': 8, 'curved': 25},
    }
    members = Ensemble(norm, RADII[norm], version).members
    # Here all objectives are one, so the members differ by settings only.
    distinct = {
        str({**member.describe(), 'objective': None}): member
        for member in members.values()
    }
    kinds = [(m['type'], m.get('num_steps')) for m in VERSIONS[version].values()]
    assert len(distinct) == len(set(kinds))
    for member in distinct.values():
        if member.asks == 'values':
            continue  # fewer queries than in the table, and the same otherwise
        for kind, limit in limits[norm].items():
            _check(member, kind, limit)


@pytest.mark.parametrize('norm', NORMS)
def test_noise_is_as_large_as_allowed_and_gains_nothing_on_average(norm):
    clean, eps, draws = torch.full((3, 6, 6), 127.5), RADII[norm], 400
    attack, objective = _attack('noise', norm, eps), Objective('linear', [clean])
    found = [
        attack.perturb(objective, [clean], _generator(seed))[0] for seed in range(draws)
    ]
    order = {'linf': torch.inf, 'l2': 2, 'l1': 1}[norm]
    for image in found:
        assert (image - clean).norm(order) == pytest.approx(eps, rel=1e-5)
    gains = torch.tensor([objective.exact([image])[0] for image in found])
    # Variances of a value: of a sign, of a sphere, and of exponential sizes over their
    # sum (Dirichlet).
    n = clean.numel()
    variance = {'linf': 1, 'l2': 1 / n, 'l1': 2 / (n * (n + 1))}[norm]
    spread = eps * (variance * float(objective.weights[0].square().sum())) ** 0.5
    assert abs(gains.mean()) < 4 * spread / draws**0.5
    assert gains.std() == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(
    ('name', 'norm', 'share'),
    [
        ('pgd', 'linf', 0.98),
        ('pgd', 'l2', 0.98),
        ('pgd', 'l1', 0.98),
        ('apgd', 'linf', 0.98),
        ('apgd', 'l2', 0.98),
        ('apgd', 'l1', 0.97),
        ('mim', 'linf', 0.98),
        ('mim', 'l2', 0.98),
        ('square', 'l2', 0.9),
        ('square', 'l1', 0.8),
    ],
)
def test_restarts_find_the_highest_of_many_hills(name, norm, share):
    # So near to the edge that the ball is cut off; the grid is finer than the hills.
    clean, eps = torch.tensor([[[10.0, 240.0]]]), 20.0

    def hills(first, second):
        return np.sin(first / 3) + np.cos(second / 4) + first * second / 9000

    class Hills(Objective):
        def exact(self, images):
            return [float(hills(*image.flatten().double())) for image in images]

        def value_and_grad(self, images):
            x, y = images[0].flatten().double()
            slope = torch.stack(
                [(x / 3).cos() / 3 + y / 9000, x / 9000 - (y / 4).sin() / 4]
            )
            return self.value(images), [slope.view(1, 1, 2).float()]

    attack = _attack(name, norm, f'{eps}/255')
    attack.restarts = 6 if name == 'square' else 20
    attack.random_start = attack.keep_best = True
    objective = Hills('linear', [clean])
    (found,) = attack.perturb(objective, [clean], _generator())
    steps = np.linspace(-eps, eps, 401)
    first, second = np.meshgrid(steps, steps)
    size = {'linf': np.maximum, 'l2': np.hypot, 'l1': np.add}[norm]
    inside = size(abs(first), abs(second)) <= eps
    first, second = first[inside] + 10, second[inside] + 240
    inside = (first >= 0) & (second <= 255)
    brute = hills(first[inside], second[inside]).max()
    assert share * brute < objective.exact([found])[0] <= brute + 1e-3


# Attacks that are broken on purpose: (what, whose attacks, in which norms, how).


def _backwards(self, image, grad, *args):
    return STEP(self, image, -grad, *args)


def _short(self, image, grad, size, *args):
    return STEP(self, image, grad, size / 50, *args)


def _ball_only(self, clean, image):
    return clean + self.project_delta(image - clean)


def _range_only(self, clean, image):
    return image.clamp(0, 255)


def _blind(self, image, grad):
    return grad


STEP = ThreatModel.step
STEPPING = [
    ('fgsm', 'linf'),
    ('fgsm', 'l2'),
    *[(name, norm) for name in ('pgd', 'apgd') for norm in NORMS],
    ('mim', 'linf'),
    ('mim', 'l2'),
]
SEARCHES = [('square', norm) for norm in NORMS]
# Where all steps together are eps long, or the search keeps to eps by itself, nothing
# leaves the ball.
LEAVING = [*(row for row in STEPPING if row[0] in ('pgd', 'apgd')), ('square', 'l1')]
# In linf steps into the edge cost nothing, and PGD in l2 hardly anything.
BLOCKED = [('fgsm', 'l2'), ('mim', 'l2'), ('pgd', 'l1'), ('apgd', 'l1')]
FIXED_STEPS = [row for row in STEPPING if row[0] in ('pgd', 'mim')]
BROKEN = {
    'wrong sign': (STEPPING, 'step', _backwards),
    'short steps': (FIXED_STEPS, 'step', _short),
    'out of range': (STEPPING + SEARCHES, 'project', _ball_only),
    'out of the ball': (LEAVING, 'project', _range_only),
    'into the edge': (BLOCKED, 'without_blocked', _blind),
}


def _found_out(name, norm, kinds):
    for kind in kinds:
        eps = (UNBOUNDED if kind == 'unbounded' else RADII)[norm]
        try:
            limit, blind = ROWS[name, norm][kind], BLIND.get((name, norm), '')
            _check(_attack(name, norm, eps), kind, limit, blind)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize('what', BROKEN)
def test_a_broken_attack_is_found_out(what, monkeypatch):
    rows, method, broken = BROKEN[what]
    monkeypatch.setattr(ThreatModel, method, broken)
    kinds = ('linear', 'flat', 'unbounded')
    assert [row for row in rows if not _found_out(*row, kinds)] == []


def test_a_search_that_keeps_what_is_worse_is_found_out(monkeypatch):
    learn = _Run.learn
    monkeypatch.setattr(_Run, 'learn', lambda self, x, value: learn(self, x, -value))
    assert all(_found_out('square', norm, ('flat', 'linear')) for norm in NORMS)
