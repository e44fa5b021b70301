"""APGD against the authors' code, known optima, and its own description."""

import pytest
import torch
from attacks.functions import Recorder, generator, normal, wavy
from torch import nn

from mmrobust.attacks import APGD, LARGER_RADII, PGD
from mmrobust.attacks.search import Search, SparseSearch
from mmrobust.threat import ThreatModel

RADII = {'linf': 8.0, 'l2': 128.0, 'l1': 1530.0}


# The authors' implementation, in float64 and from the same start, so that no sign of
# a gradient differs by rounding: then all points asked for must be the same.


class Classifier:
    """A small smooth network on [0, 1] images, as theirs and as an oracle."""

    def __init__(self, classes=5, curvature=1.0):
        draws = generator(11)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(512, 5)
        )
        for weight in self.net.parameters():
            shape = weight.shape
            weight.data = torch.randn(shape, generator=draws) * curvature
            weight.data /= max(weight[0].numel(), 1) ** 0.5
            weight.requires_grad_(False)
        self.images = torch.rand((6, 3, 8, 8), generator=draws)
        self.images[0].round_()
        self.labels = torch.randint(0, classes, (6,), generator=draws)
        self.seen = []

    def __call__(self, images):
        self.seen.append(images.detach().clone())
        return self.net(images)

    def oracle(self):
        recorder = Recorder(None)

        def values(images):
            logits = self.net(torch.stack(images) / 255)
            return nn.functional.cross_entropy(logits, self.labels, reduction='none')

        def value(images):
            recorder.points.append(torch.stack(images) / 255)
            return values(images)

        def value_and_grad(images):
            recorder.points.append(torch.stack(images).detach() / 255)
            leaves = [image.detach().requires_grad_() for image in images]
            found = values(leaves)
            return found.detach(), list(torch.autograd.grad(found.sum(), leaves))

        recorder.value, recorder.value_and_grad = value, value_and_grad
        return recorder


@pytest.fixture
def base(monkeypatch):
    base = pytest.importorskip('pyautoattack.autopgd_base')
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    # Theirs adds a change and takes it back, which leaves values off by rounding; the
    # count of changed values, which steers l1, is meant without those.
    monkeypatch.setattr(
        base, 'L0_norm', lambda x: (x.abs() > 1e-9).flatten(1).sum(-1), raising=True
    )
    # Where we leave it: theirs is blind to the pixel range, which costs it much of the
    # radius (test_closed_form.py).
    monkeypatch.setattr(ThreatModel, 'without_blocked', lambda self, image, grad: grad)
    monkeypatch.setattr(
        ThreatModel, '_scale', lambda self, delta, room: self.project_delta(delta)
    )
    yield base
    torch.set_default_dtype(torch.float32)


def _theirs(base, model, norm, num_steps, rho=0.75):
    attack = base.APGDAttack(
        model,
        n_iter=num_steps,
        norm={'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}[norm],
        eps=RADII[norm] / 255,
        rho=rho,
    )
    attack.init_hyperparam(model.images)
    return attack


def _assert_same_path(model, recorder, ours, best, losses, num_steps):
    theirs = torch.stack(model.seen[: num_steps + 1])
    assert len(recorder.points) == num_steps + 1
    torch.testing.assert_close(torch.stack(recorder.points), theirs, rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.stack(ours) / 255, best, rtol=0, atol=1e-7)
    logits = model.net(torch.stack(ours) / 255)
    values = nn.functional.cross_entropy(logits, model.labels, reduction='none')
    torch.testing.assert_close(values, losses, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('curvature', [1.0, 6.0])
@pytest.mark.parametrize('num_steps', [2, 20, 60])
@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_every_iterate_is_the_reference_implementations(
    norm, num_steps, curvature, base, monkeypatch
):
    model = Classifier(curvature=curvature)
    attack = _theirs(base, model, norm, num_steps)
    if norm == 'l1':
        # A custom start would change the sparsity it begins with.
        monkeypatch.setattr(base.torch, 'randn', lambda shape: torch.zeros(shape))
        best, _, losses, _ = attack.attack_single_run(model.images, model.labels)
    else:
        best, _, losses, _ = attack.attack_single_run(
            model.images, model.labels, x_init=model.images
        )
    recorder = model.oracle()
    ours = APGD(norm, RADII[norm], num_steps, random_start=False).perturb(
        recorder, list(model.images * 255), generator()
    )
    _assert_same_path(model, recorder, ours, best, losses, num_steps)


def test_larger_radii_as_the_reference_implementation(base, monkeypatch):
    model, num_steps = Classifier(), 50
    attack = _theirs(base, model, 'l1', num_steps)
    draws = generator(8)
    noise = torch.stack(
        [torch.randn(image.shape, generator=draws) for image in model.images]
    )
    monkeypatch.setattr(base.torch, 'randn_like', lambda x: noise)
    eps = RADII['l1'] / 255
    best, _, losses, _ = attack.decr_eps_pgd(
        model.images, model.labels, [3 * eps, 2 * eps, eps], [15, 15, 20]
    )
    recorder = model.oracle()
    ours = APGD(
        'l1', RADII['l1'], num_steps, radius_schedule=LARGER_RADII, random_start=True
    ).perturb(recorder, list(model.images * 255), generator(8))
    clean, *recorder.points = recorder.points
    torch.testing.assert_close(clean, model.images)
    # One more point per radius, the last iterate's.
    _assert_same_path(model, recorder, ours, best, losses, num_steps + 2)


# Known optima.


def test_step_sizes_shrink_where_fixed_ones_oscillate():
    clean, weights = torch.full((3, 6, 6), 128.0), 1 + 9 * normal().abs()

    def narrow(image):
        """A quartic valley, of different width in each value, inside the ball."""
        peak = clean + 3.3 * weights.sin()
        return -(weights * (image - peak) ** 4).sum()

    settings = dict(eps=8, num_steps=40, random_start=False)
    (fixed,) = PGD(**settings).perturb(Recorder(narrow), [clean], generator())
    (adapted,) = APGD(**settings).perturb(Recorder(narrow), [clean], generator())
    # Steps of 0.5 cannot end much nearer than that, halved ones can.
    assert narrow(adapted) > 0.05 * narrow(fixed) > narrow(clean)
    oracle = Recorder(narrow)
    APGD(**settings).perturb(oracle, [clean], generator())
    moves = [
        (after - before).abs().max()
        for before, after in zip(oracle.points, oracle.points[1:], strict=False)
    ]
    assert moves[0] == 8  # the step of 16, cut off at the ball
    assert moves[-1] < 0.15


# The two halving conditions, on a search that is told its values.


def _told(values, period, rho=0.75, checks=1):
    """Step size as a multiple of the first one after each check."""
    clean = torch.full((1, 1, 2, 2), 100.0)
    search = Search(ThreatModel('linf', 8), clean, clean, rho)
    shares, values = [], iter(values)
    search.record(torch.tensor([next(values)]), torch.ones_like(clean))
    for _ in range(checks):
        for _ in range(period):
            search.advance()
            search.record(torch.tensor([next(values)]), torch.ones_like(clean))
        search.adapt(period)
        shares.append(search.step_size.item() / 16)
    return shares, search


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([0.0, 1, 2, 3, 4], 1),  # 4 of 4 rise
        ([0.0, 1, 2, 3, 2], 0.5),  # 3 of 4: no more than rho
        ([9.0, 1, 2, 3, 4], 1),  # the first step counts as a rise
        ([0.0, 1, torch.nan, 3, 4], 0.5),  # no number is no rise
    ],
)
def test_few_rises_halve_the_step(values, expected):
    assert _told(values, period=4)[0] == [expected]


def test_no_progress_halves_the_step_though_all_steps_rise():
    # The best value, 9, is the start's: after one check without any change, halve.
    shares, search = _told([9.0, 1, 2, 3, 4, 5, 6, 7, 8], period=4, checks=2)
    assert shares == [1, 0.5]
    # ... and go back to the best, the start, with its gradient.
    assert torch.equal(search.current, search.clean)
    assert search.best_value == 9
    # Just after halving, the same is no reason.
    shares, _ = _told([9.0, 1, 0, 0, 0, 5, 6, 7, 8, 8.1], period=4, checks=2)
    assert shares == [0.5, 0.5]


def test_checkpoints_are_those_of_the_paper():
    # 2003.01690, Sec. 3.1: p = 0, 0.22, then shorter by 0.03 each time, at least 0.06.
    steps = [0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99]
    assert list(Search.checkpoints(100)) == [round(100 * step) for step in steps]
    assert Search.checkpoints(2) == {1: 1, 2: 1}
    assert list(SparseSearch.checkpoints(100)) == list(range(4, 101, 4))


def test_l1_sparsity_follows_the_best_iterate():
    clean = torch.full((1, 1, 10, 10), 100.0)
    search = SparseSearch(ThreatModel('l1', 600), clean, clean, share=0.2)
    search.record(torch.tensor([0.0]), normal(1, 1, 10, 10))
    search.advance()
    assert (search.current - clean).abs().unique().tolist() == [0, 30]  # 600 / 20
    search.record(torch.tensor([1.0]), normal(1, 1, 10, 10))
    search.adapt(1)
    # 20 of 100 changed: sparser than all, so 20 / 1.5 next, with the full step.
    assert search.share.item() == pytest.approx(0.2 / 1.5)
    assert search.step_size.item() == 600
    for expected in (400, 600 / 1.5**2, 600 / 1.5**3):
        search.adapt(1)  # nothing became sparser
        assert search.step_size.item() == pytest.approx(expected)
    for _ in range(9):
        search.adapt(1)
    assert search.step_size.item() == pytest.approx(60)


# The variant for training.


def test_two_steps_for_training():
    # One value, so that every step is seen: the ball is [120, 136].
    clean = torch.full((1, 1, 1), 128.0)

    def run(function):
        oracle = Recorder(function)
        attack = APGD(eps=8, num_steps=2, random_start=False)
        (best,) = attack.perturb(oracle, [clean], generator())
        assert (oracle.grads, oracle.values) == (2, 1)
        return [point.item() for point in oracle.points], best.item()

    # Up by 16 and cut off; the second time down by 16, of which momentum leaves
    # 0.75 * (120 - 136) + 0.25 * (136 - 128) = -10. Half a step of 8 would end at 132.
    points, best = run(lambda image: -((image - 131) ** 2).sum())
    assert points == [128, 136, 126]
    assert best == 128  # of -9, -25, -25 the clean image's
    points, best = run(lambda image: -((image - 127.2) ** 2).sum())
    assert points == [128, 120, 130]
    assert best == 128
    points, best = run(lambda image: image.sum())
    assert points == [128, 136, 136]
    assert best == 136
    points, best = run(lambda image: -((image - 132.5) ** 2).sum())
    assert best == 136  # -12.25 against -20.25 and -42.25


@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_two_steps_for_training_in_other_norms(norm):
    clean, weights = torch.full((3, 8, 8), 128.0), normal(3, 8, 8)
    oracle = Recorder(lambda image: (image * weights).sum())
    attack = APGD(norm, '90/255', num_steps=2, random_start=False, topk_share=0.05)
    attack.perturb(oracle, [clean], generator())
    first = oracle.points[1] - clean
    assert attack.threat.distance(clean, clean + first) == pytest.approx(90, rel=1e-5)
    if norm == 'l2':  # a step of 180, scaled back onto the ball
        torch.testing.assert_close(first, 90 * weights / weights.norm())
        assert attack.describe()['step_size'] == 180
    else:  # 10 of 192 values, 9 each
        largest = weights.abs() >= weights.abs().flatten().topk(10).values[-1]
        torch.testing.assert_close(first, 9 * weights.sign() * largest)
        assert attack.describe()['step_size'] == 90


# What holds for any function.


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_no_radius_and_an_enormous_one(norm):
    clean = torch.randint(0, 256, (3, 6, 5), generator=generator()).float()
    (same,) = APGD(norm, 0, 5).perturb(Recorder(wavy), [clean], generator())
    assert torch.equal(same, clean)
    (far,) = APGD(norm, 1e6, 5).perturb(Recorder(torch.sum), [clean], generator())
    assert 0 <= far.min() <= far.max() <= 255
    assert far.sum() > clean.sum()


def test_augmented_images_outside_the_range_are_cut_off():
    clean = torch.tensor([[[-20.0, 300.0, 100.0]]])
    oracle = Recorder(lambda image: -image.abs().sum())
    for norm in ('linf', 'l2', 'l1'):
        attack = APGD(norm, '8/255', 3, random_start=False)
        attack.perturb(oracle, [clean], generator())
    points = torch.cat(oracle.points)
    assert 0 <= points.min() <= points.max() <= 255


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_the_start_comes_back_where_nothing_is_a_number(norm):
    clean = torch.full((1, 4, 4), 100.0)
    attack = APGD(norm, RADII[norm] / 4, 20, random_start=False)
    nothing = Recorder(lambda image: image.sum() * torch.nan)
    (same,) = attack.perturb(nothing, [clean], generator())
    assert torch.equal(same, clean)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_one_value_without_a_gradient_does_not_stop_the_others(norm):
    clean, weights = torch.full((1, 4, 4), 100.0), 1 + normal(1, 4, 4).abs()

    class Broken(Recorder):
        def value_and_grad(self, images):
            values, grads = super().value_and_grad(images)
            grads[0][0, 0, 0] = torch.nan
            return values, grads

    oracle = Broken(lambda image: (image * weights).sum())
    attack = APGD(norm, RADII[norm] / 4, 20, random_start=False)
    (best,) = attack.perturb(oracle, [clean], generator())
    assert best[0, 0, 0] == 100
    assert attack.threat.distance(clean, best) == pytest.approx(
        attack.threat.eps, rel=1e-5
    )


def test_a_start_that_is_no_number_is_left_behind():
    clean = torch.full((1, 4, 4), 100.0)

    def broken(image):
        total = (image - clean).sum()
        return torch.where(total == 0, torch.nan, total)

    attack = APGD(eps=4, num_steps=5, random_start=True)
    (best,) = attack.perturb(Recorder(broken), [clean], generator())
    assert torch.equal(best, clean + 4)


def test_larger_radii_are_searched_first():
    oracle = Recorder(lambda image: image.sum())
    clean = torch.full((1, 2, 2), 100.0)
    schedule = [(2, 0.3), (1.5, 0.3), (1, 0.4)]
    APGD(eps=8, num_steps=10, random_start=False, radius_schedule=schedule).perturb(
        oracle, [clean], generator()
    )
    sizes = [(point - clean).abs().max().item() for point in oracle.points[1:]]
    # Per radius the start and one point per step; each starts at the best before.
    assert sizes == [0] + [16] * 3 + [12] * 4 + [8] * 5
