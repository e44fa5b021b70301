"""Fits of universal perturbations: what they find, and that they can be interrupted."""

from types import SimpleNamespace

import mmrobust  # noqa: F401  (before mmdet)
import pytest
import tiny
import torch
from evaluated import ap, attack_of
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmrobust.attacks import Patch
from mmrobust.errors import ConfigError
from mmrobust.fitting import Perturbation, Plan, Texture, fit_universal
from mmrobust.fitting import fit as fit_module
from mmrobust.fitting.fit import Fit
from mmrobust.studies.attack_matrix import Detector
from mmrobust.universal import PATCH, read_perturbation, read_picture
from torch.nn.functional import interpolate

SIZES = [(8, 8), (6, 9), (12, 5), (8, 8), (7, 7)]
EPS = 6.0
# One object, whose middle is at (3, 3).
OBJECT = torch.tensor([[0.0, 0, 6, 6]])


class Linear:
    """Stands for an opened detector whose objective is linear in each image."""

    def __init__(self, seed=0, scale=1.0, die_at=None):
        generator = torch.Generator().manual_seed(seed)
        self.weights = [
            scale * torch.randn(3, *size, generator=generator) for size in SIZES
        ]
        self.calls, self.die_at = 0, die_at
        self.dataloader = SimpleNamespace(dataset=range(len(SIZES)))
        self.attack = SimpleNamespace(objective=SimpleNamespace(name='linear'))
        self.notes = []

    def picture_size(self):
        return SIZES[0]

    def first(self):
        image = torch.full_like(self.weights[0], 100.0)
        return SimpleNamespace(regions=None, boxes=[OBJECT]), image

    def gradient(self, index, variable, shown, step):
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        image = torch.full_like(self.weights[index], 100.0)
        leaf = variable.clone().requires_grad_()
        whole = SimpleNamespace(regions=None, boxes=[OBJECT])
        moved = shown(leaf, whole, image, torch.Generator())
        value = (self.weights[index] * moved).sum()
        return float(value), torch.autograd.grad(value, leaf)[0]

    def on_canvas(self):
        """The sum of the gradients, by torch's own interpolation."""
        canvas = torch.zeros(1, 3, 8, 8, requires_grad=True)
        shown = (interpolate(canvas, size, mode='bilinear')[0] for size in SIZES)
        pairs = zip(self.weights, shown, strict=True)
        total = sum((weights * image).sum() for weights, image in pairs)
        return torch.autograd.grad(total, canvas)[0][0]


def plan(folder, **settings):
    given = dict(passes=30, batch_size=len(SIZES), objective='total', make=in_ball)
    return Plan(detectors=[], work_dir=folder, **{**given, **settings})


def in_ball(size):
    return Perturbation(size, EPS)


def fitted(folder, loops, **settings):
    return read_perturbation(Fit(plan(folder, **settings), loops).run())


def test_the_best_perturbation_of_linear_objectives_is_found(tmp_path):
    """It is eps times the sign of the sum of the gradients, whatever the sizes."""
    loop = Linear()
    best = EPS * loop.on_canvas().sign()
    assert torch.equal(fitted(tmp_path / 'all', [loop]).values, best)
    # Steps on some of the images only come close.
    some = fitted(tmp_path / 'some', [Linear()], batch_size=2).values
    assert (loop.on_canvas() * some).sum() > 0.98 * (loop.on_canvas() * best).sum()


def test_detectors_count_alike_however_large_their_losses_are(tmp_path):
    loops = [Linear(0, scale=1e3), Linear(1, scale=1e-3)]
    parts = [loop.on_canvas() for loop in loops]
    best = EPS * sum(part / part.abs().mean() for part in parts).sign()
    assert torch.equal(fitted(tmp_path, loops).values, best)


@pytest.mark.parametrize('die_at', [1, 8, 23])
def test_an_interrupted_fit_ends_as_if_it_had_not_been(tmp_path, monkeypatch, die_at):
    whole, other = tmp_path / 'whole', tmp_path / 'other'
    settings = dict(passes=6, batch_size=2, seed=5)
    fitted(whole, [Linear()], **settings)
    monkeypatch.setattr(fit_module, '_INTERVAL', -1)  # every state is kept
    with pytest.raises(KeyboardInterrupt):
        fitted(other, [Linear(die_at=die_at)], **settings)
    again = Linear()
    fitted(other, [again], **settings)
    assert again.calls <= 6 * len(SIZES) - die_at + 2
    for name in ('universal.png', 'universal.json'):
        assert (whole / name).read_bytes() == (other / name).read_bytes()
    with pytest.raises(ConfigError, match='passes was 6 and is 7'):
        fitted(other, [Linear()], **{**settings, 'passes': 7})


@pytest.fixture
def detector(coco, trained, tmp_path):
    """The tiny trained FCOS, whose training pipeline flips and crops."""
    cfg = tiny.runner_config(coco, tmp_path / 'work', tiny.fcos())
    return Detector('fcos', 'fcos.py', str(trained), Config(cfg))


def test_a_fit_sees_training_images_as_the_test_pipeline_shows_them(
    detector, coco, tmp_path, monkeypatch, evaluate
):
    seen = {}
    gradient = fit_module.FitLoop.gradient

    def watched(self, index, *args):
        part = self.images.load(index)
        seen[part['data_samples'][0].img_id] = part['inputs'][0]
        return gradient(self, index, *args)

    monkeypatch.setattr(fit_module.FitLoop, 'gradient', watched)
    settings = Plan([detector], in_ball, 'total', tmp_path, 3, 1, num_images=2)
    path = fit_universal(settings)
    tested = DATASETS.build(tiny.dataset(coco, test=True))
    shown = {each['data_samples'].img_id: each['inputs'] for each in tested}
    assert len(seen) == 2
    assert all(torch.equal(image, shown[img_id]) for img_id, image in seen.items())
    stored = read_perturbation(path)
    first, _, last = stored.settings['objective_by_pass']
    assert last > first
    # Scored, of which the two are told.
    attack = dict(type='mmrobust.Universal', perturbation=str(path))
    report = evaluate(dict(universal=attack), check_images=0, gallery=0)
    (text,) = (each for each in report['checks'] if each.startswith('universal: '))
    assert 'was fitted on 2 of the 6 images' in text
    found = attack_of(report, 'universal')
    assert found['sha256'] == stored.sha256
    assert ap(found) < report['benign']['boxes']['mAP']['estimate']
    markdown = (tmp_path / 'r.md').read_text()
    assert f'universal shows {path}, sha256 {stored.sha256}, fitted on' in markdown
    # No training images, no fit.
    detector.cfg.pop('train_dataloader')
    with pytest.raises(ConfigError, match='has no train_dataloader'):
        fit_universal(settings)


def textures(smooth=0.0):
    return lambda size: Texture(size, Patch(search='grey', size='4x4'), smooth)


def test_the_best_texture_of_linear_objectives_is_found(tmp_path):
    """White where the gradients at all of its places sum to more than 0, else black."""
    loop = Linear()
    total = sum(w[:, 1:5, 1:5] for w in loop.weights)  # see Linear.gradient
    settings = dict(make=textures(), size=4)
    stored = read_picture(Fit(plan(tmp_path / 'free', **settings), [loop]).run(), PATCH)
    assert torch.equal(stored.values, 255.0 * (total > 0))
    assert stored.settings['patch']['size'] == '4x4'
    held = Fit(plan(tmp_path / 'smooth', make=textures(3.0), size=4), [Linear()])
    smooth = read_picture(held.run(), PATCH)
    roughness = [each.values.diff().abs().sum() for each in (stored, smooth)]
    assert roughness[1] < 0.5 * roughness[0]


@pytest.mark.parametrize(
    ('patch', 'message'),
    [
        ({'size': '9x4'}, '9 x 4 pixels is larger than a picture of 8 x 8'),
        ({'size': 4, 'place': (8, 2)}, 'at 8,2 .left, top. lies outside'),
    ],
)
def test_a_texture_without_room_is_refused_before_the_first_step(
    tmp_path, patch, message
):
    loop = Linear()
    make = lambda size: Texture(size, Patch(search='grey', **patch))  # noqa: E731
    with pytest.raises(ConfigError, match=message):
        Fit(plan(tmp_path, make=make), [loop])
    assert loop.calls == 0
