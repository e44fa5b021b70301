"""What holds for every attack that keeps its best point, whatever the function."""

import pytest
import torch
from attacks.functions import Recorder, generator, wavy

from mmrobust.attacks import APGD, LARGER_RADII, PGD, Square, TransferPGD

RADII = {'linf': 8.0, 'l2': 40.0, 'l1': 300.0}
ATTACKS = {
    'pgd': (PGD, dict(num_steps=6)),
    'pgd from the image': (PGD, dict(num_steps=6, random_start=False)),
    'apgd': (APGD, dict(num_steps=12)),
    'apgd from the image': (APGD, dict(num_steps=12, random_start=False)),
    'apgd, larger radii': (APGD, dict(num_steps=12, radius_schedule=LARGER_RADII)),
    'diverse': (
        TransferPGD,
        dict(num_steps=6, diversity_prob=0.5, smallest=0.6, keep_best=True),
    ),
    'square': (Square, dict(num_queries=40)),
}
ROWS = [
    (name, norm)
    for name in ATTACKS
    for norm in RADII
    if (name, norm) != ('diverse', 'l1')
]
FROM_RANDOM_POINTS = ('pgd', 'apgd', 'apgd, larger radii', 'square')
EVERY = pytest.mark.parametrize(('name', 'norm'), ROWS)


def build(name, norm='linf', **settings):
    kind, own = ATTACKS[name]
    return kind(norm, f'{RADII[norm]}/255', **{**own, **settings})


def pictures():
    draws = generator(6)
    return [
        torch.randint(0, 256, shape, generator=draws).float()
        for shape in ((3, 9, 7), (3, 6, 12), (3, 9, 7), (1, 1, 1))
    ]


@EVERY
def test_images_alone_and_together_are_in_the_ball_and_no_worse_than_clean(name, norm):
    attack, images = build(name, norm, restarts=2), pictures()
    seeds = range(len(images))
    together = attack.perturb(Recorder(wavy), images, [generator(i) for i in seeds])
    for seed, clean, found in zip(seeds, images, together, strict=True):
        assert attack.threat.distance(clean, found) <= RADII[norm] * (1 + 1e-5)
        assert 0 <= found.min() <= found.max() <= 255
        oracle = Recorder(wavy)
        (alone,) = attack.perturb(oracle, [clean], [generator(seed)])
        # Sums over a batch may be rounded in another order.
        atol = 1e-3 if name.startswith('apgd') and norm != 'linf' else 0
        torch.testing.assert_close(found, alone, rtol=0, atol=atol)
        # Some points that these ask for are out of the ball, or moved on a canvas.
        elsewhere = name in ('apgd, larger radii', 'diverse')
        best = float(wavy(clean)) if elsewhere else max(oracle.seen)
        assert float(wavy(alone)) >= best - 1e-6
    assert not torch.equal(together[0] - images[0], together[2] - images[2])


@pytest.mark.parametrize(
    ('name', 'norm'), [row for row in ROWS if row[0] in FROM_RANDOM_POINTS]
)
def test_restarts_never_make_it_worse(name, norm):
    attack, clean, values = build(name, norm), torch.full((3, 8, 8), 100.0), []
    for attack.restarts in (1, 12):
        (found,) = attack.perturb(Recorder(wavy), [clean], generator())
        values.append(wavy(found).item())
    assert values == sorted(values)
    assert values[1] > values[0]


@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
@EVERY
def test_a_value_that_is_no_number_is_never_chosen(name, norm, bad):
    clean = torch.full((1, 4, 4), 100.0)

    def broken(image):
        total = (image - clean).sum()
        return torch.where(total > 4, bad, total)

    (best,) = build(name, norm).perturb(Recorder(broken), [clean], generator())
    assert 0 <= broken(best) <= 4


@pytest.mark.parametrize('name', ['pgd', 'apgd', 'apgd from the image', 'square'])
def test_a_value_in_common_is_the_value_of_each_image(name):
    """As the loss of a batch in adversarial training is."""

    class Common(Recorder):
        def value(self, images):
            self.seen.append(float(total := super().value(images).sum()))
            return total.reshape(1)

        def value_and_grad(self, images):
            values, grads = super().value_and_grad(images)
            self.seen.append(float(values.sum()))
            return values.sum().reshape(1), grads

    oracle = Common(lambda image: image.sum())
    images = [torch.full((1, 2, 2), 100.0), torch.full((1, 3, 2), 50.0)]
    found = build(name).perturb(oracle, images, generator())
    assert float(sum(image.sum() for image in found)) == max(oracle.seen)
    if name != 'square':
        assert all(map(torch.equal, found, [image + 8 for image in images]))


@pytest.mark.parametrize(
    ('kind', 'settings', 'values', 'grads'),
    [
        *[
            (kind, dict(num_steps=7, **settings), values, grads)
            for kind in (PGD, APGD)
            for settings, values, grads in (
                (dict(random_start=False), 1, 7),
                (dict(random_start=True), 2, 7),
                (dict(random_start=False, restarts=3), 3, 21),
                (dict(random_start=True, keep_best=False), 0, 7),
                (dict(norm='l1', random_start=False), 1, 7),
            )
        ],
        (APGD, dict(num_steps=10, radius_schedule=LARGER_RADII), 4, 10),
        (
            APGD,
            dict(num_steps=10, radius_schedule=LARGER_RADII, keep_best=False),
            2,
            10,
        ),
        (TransferPGD, dict(num_steps=8), 0, 8),
        (TransferPGD, dict(num_steps=8, diversity_prob=1, keep_best=True), 9, 8),
        (Square, dict(num_queries=30), 31, 0),
        (Square, dict(num_queries=30, restarts=2), 61, 0),
    ],
)
def test_the_cost_is_what_the_docstring_says(kind, settings, values, grads):
    oracle = Recorder(lambda image: image.sum())
    kind(eps='4/255', **settings).perturb(oracle, [torch.zeros(1, 2, 2)], generator())
    assert (oracle.values, oracle.grads) == (values, grads)


def test_the_best_iterate_is_kept():
    clean = torch.full((1, 2, 2), 100.0)

    def narrow(image):
        """Largest at +1, falling beyond it: full steps overshoot."""
        return -((image - clean - 1) ** 2).sum()

    settings = dict(eps=8, step_size=8, num_steps=5, random_start=False)
    last, best = (
        PGD(**settings, keep_best=kept).perturb(Recorder(narrow), [clean], generator())
        for kept in (False, True)
    )
    assert narrow(best[0]) >= narrow(clean) > narrow(last[0])
