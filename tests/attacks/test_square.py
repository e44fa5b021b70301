"""Square against the authors' code, known optima, and its own description."""

import math

import pytest
import torch
from attacks.functions import Recorder, generator, wavy

from mmrobust.attacks import PGD, Square
from mmrobust.attacks.square import _hill
from mmrobust.registry import ATTACKS

RADII = {'linf': 8.0, 'l2': 128.0, 'l1': 1530.0}
ORDERS = {'linf': math.inf, 'l2': 2, 'l1': 1}


def _reference(norm, queries, eps, model=None, seed=0):
    """The authors' attack with ``queries`` forward passes, on [0, 1] images."""
    authors = pytest.importorskip('pyautoattack.square')
    return authors.SquareAttack(
        model,
        norm={'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}[norm],
        n_queries=queries - 1,  # theirs does not count the start
        eps=eps / 255,
        seed=seed,
    )


@pytest.mark.parametrize('queries', [2, 37, 300, 5000, 10_001])
def test_the_schedule_is_the_authors(queries):
    ours, theirs = Square(num_queries=queries), _reference('linf', queries, 8)
    for proposal in range(queries - 1):
        assert ours.share(proposal) == theirs.p_selection(proposal)


@pytest.mark.parametrize('norm', sorted(RADII))
def test_queries_are_counted_as_the_authors_do(norm):
    calls = []

    def unbreakable(images):
        calls.append(len(images))
        return torch.tensor([[9.0, 0.0]]).repeat(len(images), 1)

    reference = _reference(norm, 30, 8, unbreakable)
    image = torch.full((1, 3, 8, 8), 0.5)
    reference.init_hyperparam(image)
    reference.attack_single_run(image, torch.zeros(1, dtype=torch.long))
    oracle = Recorder(lambda image: image.new_zeros(()))
    Square(norm, RADII[norm], num_queries=30, restarts=2).perturb(
        oracle, [image[0] * 255], generator()
    )
    assert len(calls) == 30
    assert len(oracle.points) == 1 + 2 * 30


@pytest.mark.parametrize('norm', sorted(RADII))
def test_it_breaks_as_many_images_as_the_authors_with_as_many_queries(norm):
    """Of a linear function, at three margins that its value has to reach."""
    # Smooth, as the squares of l2 and l1 have at least 3 pixels.
    row, eps, count = torch.sin(torch.arange(15) * 0.7), RADII[norm], 12
    planes = [row[:, None] * row, row[:, None] + row, -row.expand(15, 15)]
    weights, clean = torch.stack(planes), torch.full((3, 15, 15), 128.0)

    def gain(image):
        return ((image - clean) * weights).double().sum((-3, -2, -1))

    def network(images):
        # A margin that is never lost, so that theirs goes on.
        margin = 1e4 - gain(images * 255)
        return torch.stack([margin, torch.zeros_like(margin)], 1)

    attack = Square(norm, eps, num_queries=100)
    draws = [generator(seed) for seed in range(count)]
    found = attack.perturb(Recorder(gain), [clean] * count, draws)
    ours = torch.stack([gain(image) for image in found])
    reference = _reference(norm, 100, eps, network)
    images, labels = clean.expand(count, 3, 15, 15), torch.zeros(count).long()
    reference.init_hyperparam(images)
    torch.manual_seed(0)
    _, attacked = reference.attack_single_run(images / 255, labels)
    theirs = gain(attacked * 255)
    assert ours.mean() > 0.75 * theirs.mean()
    for share in (0.25, 0.5, 0.75):
        margin = theirs.quantile(share)
        broken = [float((each >= margin).double().mean()) for each in (ours, theirs)]
        # Three standard deviations of the difference of two shares of twelve.
        assert broken[0] > broken[1] - 3 * (2 * share * (1 - share) / count) ** 0.5
    if norm == 'l2':
        optimum = eps * weights.norm()
    elif norm == 'linf':
        optimum = eps * weights.abs().sum()
    else:  # the radius of 1530 moves 12 values by 127 or 128
        optimum = 128 * weights.abs().flatten().sort().values[-12:].sum()
    assert 0.3 * optimum < ours.max() < optimum


@pytest.mark.parametrize('norm', sorted(RADII))
@pytest.mark.parametrize('shape', [(3, 16, 16), (1, 5, 23), (3, 2, 3), (3, 1, 1)])
def test_every_point_stays_in_the_ball_and_the_best_is_returned(norm, shape):
    clean = torch.randint(0, 256, shape, generator=generator(5)).float()
    oracle = Recorder(wavy)
    attack = Square(norm, RADII[norm], num_queries=60, restarts=2)
    (best,) = attack.perturb(oracle, [clean], generator())
    for point in oracle.points:
        assert attack.threat.distance(clean, point) <= RADII[norm] * (1 + 1e-5)
        assert 0 <= point.min() <= point.max() <= 255
        assert not point.isnan().any()
    assert wavy(best) == max(oracle.seen)


def test_linf_starts_from_stripes_and_changes_one_square_at_a_time():
    clean, oracle = torch.full((3, 20, 12), 100.0), Recorder(wavy)
    attack = Square(eps=8, num_queries=200)
    attack.perturb(oracle, [clean], generator())
    start, *proposals = oracle.points[1:]
    assert torch.equal(start, start[:, :1].expand(3, 20, 12))
    assert set((start - clean).unique().tolist()) == {-8, 8}
    best, value, places = start, oracle.seen[1], set()
    for i, (point, seen) in enumerate(zip(proposals, oracle.seen[2:], strict=True)):
        side = min(12, max(1, round(math.sqrt(attack.share(i) * 20 * 12))))
        changed = (point != best).any(0).nonzero()
        assert len(changed)  # no query is wasted
        low, high = changed.amin(0), changed.amax(0)
        assert (high - low).max() < side
        inside = point[:, low[0] : high[0] + 1, low[1] : high[1] + 1] - clean[0, 0, 0]
        assert torch.equal(inside.abs(), torch.full_like(inside, 8))
        assert torch.equal(inside, inside[:, :1, :1].expand_as(inside))
        places.add((int(low[0]), int(low[1])))
        if seen > value:
            best, value = point, seen
    rows, columns = zip(*places, strict=True)
    # The last row and column are reached as well.
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 19, 0, 11)


@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_mass_moves_between_two_squares(norm):
    order = ORDERS[norm]
    # Far from the ends of the range, which would take mass away.
    clean, eps = torch.full((3, 20, 14), 128.0), 60.0
    oracle = Recorder(wavy)
    attack = Square(norm, f'{eps}/255', num_queries=120)
    attack.perturb(oracle, [clean], generator())
    best, value = oracle.points[1] - clean, oracle.seen[1]
    assert best.norm(p=order) == pytest.approx(eps, rel=1e-4)
    for i, (point, seen) in enumerate(
        zip(oracle.points[2:], oracle.seen[2:], strict=True)
    ):
        delta = point - clean
        side = min(14, max(3, round(math.sqrt(attack.share(i) * 20 * 14))) | 1)
        assert delta.norm(p=order) == pytest.approx(eps, rel=1e-4)
        if norm == 'l2':
            # Each channel keeps its own, as nothing was unused.
            assert torch.allclose(
                delta.norm(dim=(1, 2)), best.norm(dim=(1, 2)), rtol=1e-3, atol=1e-3
            )
            changed = ((delta - best).abs() > 1e-4).any(0)
        else:
            # The projection has made all others smaller.
            changed = (delta.abs() > best.abs() + 1e-4).any(0)
        assert changed.sum() <= 2 * side * side
        if seen > value:
            best, value = delta, seen


def test_unused_mass_is_spent():
    # White and black: a start of both signs is cut off by half.
    clean = torch.cat([torch.zeros(1, 10, 10), torch.full((1, 10, 10), 255.0)])
    oracle = Recorder(lambda image: (image - clean).double().norm())
    attack = Square('l2', 100, num_queries=400)
    (best,) = attack.perturb(oracle, [clean], generator())
    assert oracle.seen[1] < 80
    assert attack.threat.distance(clean, best) > 95


@pytest.mark.parametrize('side', [1, 2, 3, 6, 7])
@pytest.mark.parametrize('order', [2, 1])
def test_the_hill_is_the_papers(side, order):
    height, width = max(side // 2, 1), side
    n = max(height, width) // 2
    hill = torch.zeros(height, width)
    for r in range(1, height + 1):
        for s in range(1, width + 1):
            rings = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
            hill[r - 1, s - 1] = sum(
                (n + 1 - k) ** (-2 if order == 2 else -4) for k in range(rings + 1)
            )
    torch.testing.assert_close(
        _hill(height, width, order).float(), hill / hill.norm(p=order)
    )


def test_which_oracle_it_reads():
    assert PGD().reads == 'loss'
    attack = ATTACKS.build(dict(type='mmrobust.Square', num_queries=7, restarts=2))
    assert attack.reads == 'detections'
    assert attack.describe() == {
        'norm': 'linf',
        'eps': 4,
        'step_size': None,
        'num_steps': 7,
        'objective': 'detections',
        'restarts': 2,
        'num_queries': 7,
        'p_init': 0.8,
        'eot': 1,
        'gradient_free': True,
    }
    on_loss = Square(objective='cls')
    assert (on_loss.reads, on_loss.describe()['objective']) == ('loss', 'cls')
    assert Square(objective=['loss_cls']).reads == 'loss'
