"""AutoAttack: equal to the package, equal when interrupted, right where it is known."""

import json
import pickle
import runpy
import shutil
import sys
import uuid
from pathlib import Path

import cv2
import mmrobust  # noqa: F401  (before mmpretrain: it provides mmcv's operators)
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmrobust.autoattack import loop as loop_module
from mmrobust.autoattack import package
from mmrobust.autoattack.images import ImageList, at_resolution
from mmrobust.autoattack.members import Ball, Ensemble, Member, read_balls
from mmrobust.autoattack.shard import Logits
from mmrobust.utils.models import frozen
from mmrobust.errors import ConfigError
from torch import nn

pyautoattack = pytest.importorskip('pyautoattack')
base = pytest.importorskip('pyautoattack.autopgd_base')

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'test.py'
SIDE, IMAGES, CLASSES = 10, 7, 12
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
QUICK = ['apgd-ce:n_iter=5,n_restarts=1', 'square:n_queries=5']


@MODELS.register_module(force=True)
class FlatBackbone(nn.Module):
    """The pixels as features, so that the classifier is linear."""

    def forward(self, images):
        return (F.adaptive_avg_pool2d(images, SIDE).flatten(1),)


@MODELS.register_module(force=True)
class ConstantHead(nn.Module):
    """Logits that no image changes."""

    def __init__(self, attached):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(CLASSES).float())
        self.attached = attached

    def forward(self, features):
        scores = self.weight.expand(len(features[0]), -1)
        return (
            scores + 0 * features[0].sum(1, keepdim=True) if self.attached else (scores)
        )

    def predict(self, features, samples):
        for sample, score in zip(samples, self(features), strict=True):
            sample.set_pred_score(score.softmax(0)).set_pred_label(score.argmax())
        return samples


@MODELS.register_module(force=True)
class NoisyBackbone(FlatBackbone):
    """A randomised defence."""

    def forward(self, images):
        return super().forward(images + 0.5 * torch.randn_like(images))


class Plain(nn.Module):
    """The same linear classifier written out, for images in [0, 1]."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.mean = torch.tensor(MEAN).view(-1, 1, 1)
        self.std = torch.tensor(STD).view(-1, 1, 1)

    def forward(self, images):
        pixels = (images * 255).flip(1)
        return F.linear(
            ((pixels - self.mean) / self.std).flatten(1), self.weight, self.bias
        )

    def gradient(self):
        """Of each logit with respect to an image in [0, 1], (K, C * H * W)."""
        scaled = self.weight.view(-1, 3, SIDE, SIDE) * 255 / self.std
        return scaled.flip(1).flatten(1)


def linear(num_classes=CLASSES, scale=0.02):
    generator = torch.Generator().manual_seed(3)
    shape = (num_classes, 3 * SIDE * SIDE)
    return Plain(
        scale * torch.randn(shape, generator=generator), torch.zeros(num_classes)
    )


def pictures(folder, plain, wrong=1, name=''):
    """Images far from black and white; all but the last ``wrong`` have the label that
    the classifier gives them.
    """
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(IMAGES):
        picture = rng.integers(90, 165, (SIDE, SIDE, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{index}.png'), picture)
        image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        label = int(plain(image).argmax())
        if index >= IMAGES - wrong:
            label = (label + 1) % len(plain.bias)
        lines.append(f'{index}.png {label}\n')
    (folder / f'labels{name}.txt').write_text(''.join(lines))
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp('pictures'), linear())


def config(data, work_dir, num_classes=CLASSES, **loop):
    """A whole config; ``loop`` is its test loop."""
    head = dict(type='LinearClsHead', num_classes=num_classes, in_channels=3 * SIDE**2)
    dataset = dict(
        type='CustomDataset',
        data_root=str(data),
        ann_file='labels.txt',
        data_prefix='images',
        metainfo=dict(classes=[f'class {i}' for i in range(num_classes)]),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
    return dict(
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True),
            backbone=dict(type='FlatBackbone'),
            head=head,
        ),
        work_dir=str(work_dir),
        test_dataloader=dict(
            batch_size=3,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dataset,
        ),
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        test_cfg={'type': 'mmrobust.AutoAttackTestLoop', **loop},
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1000)),
        visualizer=dict(type='UniversalVisualizer', vis_backends=[]),
        default_scope='mmpretrain',
        log_level='ERROR',
    )


def runner_for(cfg, plain=None):
    """Builds a runner, and puts the weights of a linear classifier into its model."""
    runner = Runner.from_cfg(Config({**cfg, 'experiment_name': uuid.uuid4().hex}))
    if plain is not None:
        runner.model.head.fc.weight.data.copy_(plain.weight)
        runner.model.head.fc.bias.data.copy_(plain.bias)
    return runner


def evaluate(cfg, plain=None):
    """Runs a test loop and returns its report."""
    runner_for(cfg, plain).test()
    return json.loads(Path(cfg['work_dir'], 'robustness.json').read_text())


def images_and_labels(data):
    images, labels = [], []
    for line in (data / 'labels.txt').read_text().splitlines():
        name, label = line.split()
        picture = cv2.imread(str(data / 'images' / name))
        images.append(torch.from_numpy(picture).permute(2, 0, 1).float() / 255)
        labels.append(int(label))
    return torch.stack(images), torch.tensor(labels)


def timeless(report):
    """What two equal runs have in common."""
    report = json.loads(json.dumps(report))
    for key in ('config_text', 'environment', 'per_image'):
        report.pop(key)
    for attack in report['attacks']:
        attack['cost'].pop('seconds')
        for member in attack['members'].values():
            member.pop('seconds')
    return report


def per_image(report, view, ball):
    folder = Path(report['per_image'], view, ball)
    shards = [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]
    return [image for shard in shards for image in shard['images']]


# ----------------------------------------------------------- equal to the package

EPS = {'linf': 1.7, 'l2': 24.0, 'l1': 160.0}


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('shard_size', [IMAGES, 3])
def test_equal_to_the_package(data, tmp_path, norm, shard_size):
    """Bit by bit, for each shard, with all the kinds of members."""
    members = [
        'apgd-ce:n_iter=6,n_restarts=2',
        'apgd-t:n_iter=6,n_target_classes=2',
        'fab-t:n_iter=3,n_target_classes=2',
        'square:n_queries=20',
    ]
    cfg = config(
        data,
        tmp_path,
        threats=[dict(norm=norm, eps=EPS[norm])],
        attacks=members,
        seed=5,
        shard_size=shard_size,
        save_adv=str(tmp_path / 'adv'),
    )
    plain = linear()
    report = evaluate(cfg, plain)
    images, labels = images_and_labels(data)
    expected, robust = [], 0
    for start in range(0, IMAGES, shard_size):
        x, y = images[start : start + shard_size], labels[start : start + shard_size]
        direct = pyautoattack.AutoAttack(
            plain,
            norm=package.PACKAGE_NORMS[norm],
            eps=EPS[norm] / 255,
            seed=5,
            version='custom',
            attacks=['apgd-ce', 'apgd-t', 'fab-t', 'square'],
        )
        common = dict(
            eps=EPS[norm] / 255, norm=package.PACKAGE_NORMS[norm], seed=5, device='cpu'
        )
        direct.apgd = base.APGDAttack(plain, n_iter=6, n_restarts=2, **common)
        direct.apgd_targeted = base.APGDAttack_targeted(
            plain, n_iter=6, n_target_classes=2, **common
        )
        direct.fab.n_iter, direct.fab.n_target_classes = 3, 2
        direct.square.n_queries = 20
        x_adv, y_adv = direct.run_standard_evaluation(x, y, batch_size=shard_size)
        expected.append(x_adv)
        robust += int((y_adv == y).sum())
    name = Ball(norm, EPS[norm]).name
    adversarial = torch.cat(expected)
    for index in range(IMAGES):
        saved = np.load(tmp_path / 'adv' / str(SIDE) / name / f'{index}.png.npz')
        assert np.array_equal(saved['image'], (adversarial[index] * 255).numpy())
    # A radius at which some images break and some do not, or nothing is shown.
    assert 0 < robust < IMAGES - 1
    (attack,) = report['attacks']
    assert attack['metrics']['robust'] == robust
    assert attack['metrics']['top1'] == pytest.approx(100 * robust / IMAGES)
    assert report['rows'][0]['threats'][name] == attack['metrics']['top1']
    after = [m['accuracy_after'] for m in attack['members'].values()]
    assert after == sorted(after, reverse=True)
    assert after[-1] == pytest.approx(attack['metrics']['top1'])
    assert attack['checks'] == []


def test_the_standard_version_has_the_packages_settings():
    members = Ensemble.read(None, None).members

    def settings(norm, classes):
        model, device = Logits(nn.Identity()), torch.device('cpu')
        ball = Ball.read(norm)
        attack, notes = package.build(
            model, ball, 'standard', members, 0, classes, device
        )
        return package.describe(attack), notes

    apgd = dict(n_iter=100, n_restarts=1, eot_iter=1, use_largereps=False)
    assert settings('linf', 10) == (
        {
            'apgd-ce': apgd,
            'apgd-t': {**apgd, 'n_target_classes': 9},
            'fab-t': dict(n_iter=100, n_restarts=1, n_target_classes=9),
            'square': dict(n_queries=5000, n_restarts=1),
        },
        [],
    )
    found, notes = settings('l1', 8)
    assert found['apgd-ce']['n_restarts'] == 5
    assert found['apgd-t']['use_largereps'] is True
    # 5 targets fit into 8 classes, FAB's 9 do not.
    assert found['apgd-t']['n_target_classes'] == 5
    assert found['fab-t']['n_target_classes'] == 7
    assert notes == ['fab-t: 7 target classes instead of 9, because there are no more']


# --------------------------------------------------------- a known robust accuracy


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_the_robust_accuracy_of_a_linear_model(data, tmp_path, norm):
    """An image breaks exactly when a margin is below eps times the dual norm."""
    plain = linear(4)
    pictures(tmp_path / 'data', plain, wrong=0)
    images, labels = images_and_labels(tmp_path / 'data')
    logits, gradient = plain(images), plain.gradient()
    order = {'linf': 1, 'l2': 2, 'l1': float('inf')}[norm]
    limits = torch.stack(
        [
            min(
                (logits[i, labels[i]] - logits[i, other])
                / (gradient[labels[i]] - gradient[other]).norm(order)
                for other in range(4)
                if other != labels[i]
            )
            for i in range(IMAGES)
        ]
    )
    ordered = limits.sort().values
    gaps = ordered[1:] / ordered[:-1]
    split = int(gaps[1:-1].argmax()) + 1
    # In the middle of a wide gap, so that an attack need not be perfect.
    eps = float((ordered[split] * ordered[split + 1]).sqrt())
    assert gaps[split] > 1.1
    report = evaluate(
        config(
            tmp_path / 'data',
            tmp_path,
            4,
            threats=[dict(norm=norm, eps=f'{eps * 255}/255')],
            attacks=['apgd-t:n_iter=40'],
        ),
        plain,
    )
    (attack,) = report['attacks']
    rows = per_image(report, '10', Ball(norm, eps * 255).name)
    assert [row['robust'] for row in rows] == (limits > eps).tolist()
    assert 0 < attack['metrics']['robust'] < IMAGES
    # 3 targets, all there are, and that is said.
    assert attack['members']['apgd-t']['settings']['n_target_classes'] == 3
    assert attack['checks'] == [
        'apgd-t: 3 target classes instead of 9, because there are no more'
    ]
    for row in rows:
        assert row['valid']
        assert row['distance'] <= eps * 255 * 1.0002


@pytest.mark.parametrize('attached', [True, False])
def test_constant_logits_never_break(data, tmp_path, attached):
    """And the report says why one should not believe it."""
    lines = (data / 'labels.txt').read_text().splitlines()
    root = pictures(tmp_path / 'data', linear())
    last = CLASSES - 1
    (root / 'labels.txt').write_text(
        ''.join(
            f'{line.split()[0]} {last if i < 5 else 0}\n'
            for i, line in enumerate(lines)
        )
    )
    cfg = config(
        root,
        tmp_path,
        attacks=[*QUICK, 'apgd-t:n_iter=2,n_target_classes=1', 'fab:n_iter=1'],
    )
    cfg['model']['head'] = dict(type='ConstantHead', attached=attached)
    report = evaluate(cfg)
    (attack,) = report['attacks']
    assert attack['metrics']['robust'] == 5
    text = ' '.join(attack['checks'])
    assert '5 correctly classified images have no gradient at all' in text
    assert 'the DLR loss had no gradient at some images' in text
    assert ('do not depend on the images' in text) is not attached


# --------------------------------------------------- interrupted, changed, shared


class Killed(BaseException):
    pass


THREATS = [dict(norm='linf', eps=2), dict(norm='l2', eps=20)]


def count_attacks(monkeypatch):
    calls = []
    run = package.run

    def counted(attack, images, labels):
        calls.append(len(images))
        return run(attack, images, labels)

    monkeypatch.setattr(loop_module.package, 'run', counted)
    return calls


def test_a_killed_run_goes_on(data, tmp_path, monkeypatch):
    loop = dict(attacks=QUICK, shard_size=2, threats=THREATS)
    whole = evaluate(config(data, tmp_path / 'whole', **loop), linear())
    calls = count_attacks(monkeypatch)
    write = loop_module.ShardStore.write

    def dies(store, view, ball, shard, record):
        if (ball, shard) == ('l2-20', 1):
            raise Killed
        write(store, view, ball, shard, record)

    cfg = config(data, tmp_path / 'killed', **loop)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.ShardStore, 'write', dies)
        with pytest.raises(Killed):
            evaluate(cfg, linear())
    report = json.loads((tmp_path / 'killed/robustness.json').read_text())
    assert report['complete'] is False
    assert [attack['name'] for attack in report['attacks']] == ['autoattack/linf-2']
    shards = tmp_path / 'killed/robustness.shards/10'
    names = sorted(str(p.relative_to(shards)) for p in shards.rglob('*.json'))
    assert names == [f'l2-20/{0:06d}.json', *(f'linf-2/{i:06d}.json' for i in range(4))]
    # A file that was being written when the machine went down, and one of a stranger.
    damaged = shards / 'linf-2/000001.json'
    damaged.write_text(damaged.read_text()[:200])
    foreign = json.loads((shards / 'linf-2/000002.json').read_text())
    (shards / 'linf-2/000002.json').write_text(json.dumps({**foreign, 'run': 'x'}))
    calls.clear()
    resumed = evaluate(cfg, linear())
    # Two of linf and three of l2; the last shard is one misclassified image, for which
    # the package is not asked.
    assert calls == [2, 2, 2, 2]
    assert timeless(resumed) == timeless(whole)
    assert len(resumed['attacks']) == 2
    calls.clear()
    assert timeless(evaluate(cfg, linear())) == timeless(whole)
    assert calls == []


def test_a_threat_can_be_added(data, tmp_path, monkeypatch):
    calls = count_attacks(monkeypatch)
    evaluate(config(data, tmp_path, attacks=QUICK, threats=THREATS[:1]), linear())
    first = len(calls)
    report = evaluate(config(data, tmp_path, attacks=QUICK, threats=THREATS), linear())
    assert len(calls) == 2 * first
    row = report['rows'][0]
    linf, l2 = (per_image(report, '10', name) for name in ('linf-2', 'l2-20'))
    both = [a['robust'] and b['robust'] for a, b in zip(linf, l2, strict=True)]
    assert row['all_norms'] == pytest.approx(100 * sum(both) / IMAGES)
    assert row['clean'] == pytest.approx(100 * (IMAGES - 1) / IMAGES)
    text = (tmp_path / 'robustness.md').read_text()
    head = '| resolution | images | clean | linf 2 (2/255) | l2 20 (0.0784314) |'
    assert head in text


def test_adversarial_images_are_made_up_for(data, tmp_path, monkeypatch):
    """Results without images in the folder that is asked for are not enough."""
    calls = count_attacks(monkeypatch)
    loop = dict(attacks=QUICK)
    for name in (None, 'first', 'second', 'second', None):
        loop['save_adv'] = name and str(tmp_path / name)
        evaluate(config(data, tmp_path, **loop), linear())
    assert len(calls) == 3 * 2  # the last shard has nothing to attack
    for name in ('first', 'second'):
        assert len(list((tmp_path / name).rglob('*.npz'))) == IMAGES


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (dict(seed=1), 'seed was 0 and is 1'),
        (dict(shard_size=2), 'shard_size was 3 and is 2'),
        (dict(attacks=QUICK[:1]), 'members was'),
        (dict(attacks=None, version='rand'), "version was 'custom' and is 'rand'"),
        (dict(num_images=4), 'num_images was 7 and is 4'),
        ('weights', 'weights_sha256 was'),
        ('labels', 'images_sha256 was'),
        ('config', 'model.data_preprocessor.mean[0] was 120.0 and is 0.0'),
        # As mmpretrain's own configs have it; no weight and no model setting tells.
        ('beside', 'data_preprocessor.mean[0] was 120.0 and is 0.0'),
    ],
)
def test_a_changed_run_is_refused(tmp_path, change, sentence, monkeypatch):
    root = pictures(tmp_path / 'data', linear())
    loop = dict(attacks=QUICK)

    def changed(mean=MEAN):
        cfg = config(root, tmp_path, **loop)
        cfg['model']['data_preprocessor']['mean'] = mean
        if change == 'beside':
            cfg['data_preprocessor'] = cfg['model'].pop('data_preprocessor')
        return cfg

    evaluate(changed(), linear())
    calls = count_attacks(monkeypatch)
    if isinstance(change, dict):
        loop.update(change)
    plain = linear(scale=0.03) if change == 'weights' else linear()
    if change == 'labels':
        path = root / 'labels.txt'
        path.write_text(path.read_text().replace('6.png 11', '6.png 1'))
    cfg = changed([0.0, *MEAN[1:]] if change in ('config', 'beside') else MEAN)
    with pytest.raises(ConfigError, match='results of another run') as caught:
        evaluate(cfg, plain)
    assert sentence in str(caught.value)
    assert 'remove the folder' in str(caught.value)
    assert calls == []


def test_processes_share_the_shards(data, tmp_path, monkeypatch):
    """The second of two processes does its half, the first one the rest."""
    loop = dict(attacks=QUICK, shard_size=2)
    alone = evaluate(config(data, tmp_path / 'alone', **loop), linear())
    calls = count_attacks(monkeypatch)
    cfg = config(data, tmp_path / 'two', **loop)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, 'get_dist_info', lambda: (1, 2))

        def collect(*_):
            raise Killed

        patch.setattr(loop_module.AutoAttackTestLoop, '_collect', collect)
        with pytest.raises(Killed):
            evaluate(cfg, linear())
    shards = tmp_path / 'two/robustness.shards/10/linf-4'
    assert sorted(p.name for p in shards.iterdir()) == ['000001.json', '000003.json']
    calls.clear()
    monkeypatch.setattr(loop_module, 'get_dist_info', lambda: (0, 2))
    two = evaluate(cfg, linear())
    assert calls == [2, 2]
    assert timeless(two) == timeless(alone)


# --------------------------------------------------------------------- the guards


def test_few_classes():
    """The fixed version runs without what cannot work, and says so."""
    for classes, names, said in (
        (3, ['apgd-ce', 'apgd-dlr', 'fab-t', 'square'], '; apgd-dlr runs in its place'),
        (2, ['apgd-ce', 'fab-t', 'square'], ''),
    ):
        members, notes = Ensemble.read(None, None).fit(classes, 'linf', (32, 32))
        assert [member.name for member in members] == names
        assert notes == [
            f'apgd-t needs 4 classes and is left out{said}: with {classes} classes '
            'this is not the whole standard version'
        ]


def test_members_that_cannot_work_are_refused_when_named():
    named = Ensemble.read('custom', ['apgd-ce', 'apgd-t'])
    with pytest.raises(ConfigError, match='apgd-t needs 4 classes and the model has 3'):
        named.fit(3, 'linf', (32, 32))
    assert named.fit(4, 'linf', (32, 32))[1] == []
    with pytest.raises(ConfigError, match='has 1 class'):
        named.fit(1, 'linf', (32, 32))


def succeeds(run, *args):
    try:
        run(*args)
    except (ConfigError, RuntimeError, ZeroDivisionError):
        return False
    return True


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_sides_that_square_cannot_tile(norm):
    """Known from the sizes, and confirmed by the package's own attack."""
    ensemble = Ensemble.read('custom', ['square:n_queries=2'])
    sides = [(s, s) for s in (3, 5, 6, 7, 9, 10, 12, 14, 24, 28, 30, 32)]
    refused = []
    for height, width in [*sides, (10, 14), (14, 10), (10, 7), (32, 50)]:
        plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * height * width, 4))
        images = torch.rand(2, 3, height, width)
        with torch.no_grad():
            labels = plain(images).argmax(dim=1)
        attack = pyautoattack.AutoAttack(
            plain,
            norm=package.PACKAGE_NORMS[norm],
            eps=1e-4,
            seed=0,
            version='custom',
            attacks=['square'],
        )
        attack.square.n_queries = 2
        works = succeeds(attack.run_standard_evaluation, images, labels)
        allowed = succeeds(ensemble.fit, 4, norm, (height, width))
        assert allowed is works, (height, width)
        if not allowed:
            refused.append((height, width))
    assert ((14, 14) in refused) is (norm != 'linf')


def test_the_process_stays_as_it_was(data, tmp_path):
    """Generators, the trace function, the weights' flags, the logger."""
    runner = runner_for(config(data, tmp_path, attacks=['fab:n_iter=1', *QUICK]))
    weight = runner.model.head.fc.weight
    runner.model.head.fc.bias.requires_grad_(False)
    stock = config(data, tmp_path / 'stock')
    stock['test_cfg'] = {}
    states = []
    for one in (runner_for(stock), runner):
        torch.manual_seed(123)
        np.random.seed(123)
        one.test()
        states.append((torch.get_rng_state(), np.random.get_state()[1].copy()))
    # The loader of the benign pass draws, the attacks do not.
    assert torch.equal(states[0][0], states[1][0])
    assert np.array_equal(states[0][1], states[1][1])
    for path in tmp_path.rglob('robustness.shards/10/*/*.json'):
        path.unlink()

    def trace(*_):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        runner.test()
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert weight.requires_grad
    assert weight.grad is None
    assert not runner.model.head.fc.bias.requires_grad
    model = runner.model.train()
    with frozen(model):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert model.training


def test_what_the_package_notices_reaches_the_report(data, tmp_path):
    cfg = config(data, tmp_path, attacks=QUICK)
    cfg['model']['backbone']['type'] = 'NoisyBackbone'
    report = evaluate(cfg, linear(scale=0.2))
    # The third shard is one misclassified image.
    checks = ' '.join(report['attacks'][0]['checks'])
    assert "use version 'rand' (2 of 3 shards)" in checks
    assert '(2 of 3 shards)' in (tmp_path / 'robustness.md').read_text()


def test_an_answer_that_is_not_in_the_ball_does_not_count(data, tmp_path, monkeypatch):
    """Whatever the package says."""
    run = package.run

    def cheats(attack, images, labels):
        outcome = run(attack, images, labels)
        outcome.images = 1 - images  # far away, and another class
        outcome.predictions = labels + 1
        return outcome

    monkeypatch.setattr(loop_module.package, 'run', cheats)
    (attack,) = evaluate(config(data, tmp_path, attacks=QUICK), linear())['attacks']
    assert attack['metrics']['robust'] == IMAGES - 1
    assert any(
        f'{IMAGES - 1} adversarial images lie outside the ball' in text
        for text in attack['checks']
    )


def test_balls_are_checked_in_both_directions():
    clean = torch.full((3, 3, 4, 4), 0.5)
    for norm, size in (('linf', 0.1), ('l2', 0.1 * 48**0.5), ('l1', 4.8)):
        moved = clean + torch.tensor([0.0999, 0.1, 0.1001]).view(-1, 1, 1, 1)
        ball = Ball(norm, size * 255)
        assert ball.contains(clean, moved).tolist() == [True, True, False]
        assert ball.distances(clean, moved)[1] == pytest.approx(size, rel=1e-5)
    big = Ball('linf', 255.0)
    outside = torch.stack([clean[0], clean[0] - 0.6, clean[0] + float('nan')])
    assert big.contains(clean, outside).tolist() == [True, False, False]
    found = [ball.eps for ball in read_balls([dict(norm=n) for n in EPS])]
    assert found == [4, 510, 19125]


@pytest.mark.parametrize(
    ('threats', 'sentence'),
    [
        ([dict(norm='l3')], "norm='l3' is unknown: choose from linf, l2, l1"),
        ([dict(norm='linf', eps=0)], 'leaves AutoAttack nothing to do'),
        ([dict(norm='l2'), dict(norm='l2', eps=510)], 'the same eps twice'),
        ([dict(norm='l2', radius=1)], "write dict\\(norm='linf', eps=4\\)"),
        ([], 'threats is empty'),
    ],
)
def test_balls_that_are_none(threats, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read_balls(threats)


def test_images_must_be_of_one_size(tmp_path):
    root = pictures(tmp_path / 'data', linear())
    other = np.zeros((SIDE, SIDE + 2, 3), np.uint8)
    cv2.imwrite(str(root / 'images/4.png'), other)
    with pytest.raises(ConfigError, match=r'4.png has the shape \(3, 10, 12\)'):
        evaluate(config(root, tmp_path, attacks=QUICK), linear())


def test_labels_must_be_classes(data, tmp_path):
    cfg = config(data, tmp_path, 4, attacks=QUICK)
    with pytest.raises(ConfigError, match='the model has 4 classes'):
        evaluate(cfg, linear(4))


def test_without_the_package(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyautoattack', None)
    with pytest.raises(ConfigError, match='pip install "pyautoattack'):
        evaluate(config(data, tmp_path))


# ---------------------------------------------------------- which images, how big


def test_an_image_list(data, tmp_path):
    listed = tmp_path / 'ids.txt'
    listed.write_text('# the fixed choice\nval/n01440764/5.png\r\n\n2.png\n')
    cfg = config(data, tmp_path, attacks=QUICK, image_ids=str(listed))
    report = evaluate(cfg, linear())
    assert [i['id'] for i in per_image(report, '10', 'linf-4')] == ['2.png', '5.png']
    assert report['dataset']['num_images'] == 2
    for text, sentence in [
        ('2.png\nval/99.png\n98.png\n', "2 of the 3 images .* such as 'val/99.png'"),
        ('2.png\nval/2.png\n', 'names 1 images twice'),
        ('\n', 'is empty'),
    ]:
        listed.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            runner_for(cfg).test()
    listed.unlink()
    with pytest.raises(ConfigError, match='cannot be read'):
        runner_for(cfg).test()


def test_names_that_are_not_unique_need_their_folder(tmp_path):
    for label in ('a', 'b'):
        (tmp_path / 'val' / label).mkdir(parents=True)
        for name in ('0.png', '1.png'):
            picture = np.full((SIDE, SIDE, 3), 127, np.uint8)
            cv2.imwrite(str(tmp_path / 'val' / label / name), picture)
    cfg = config(tmp_path, tmp_path / 'work', 2, attacks=['apgd-ce:n_iter=2'])
    cfg['test_cfg']['image_ids'] = str(tmp_path / 'ids.txt')
    cfg['test_dataloader']['dataset'].update(ann_file='', data_prefix='val')
    cfg['test_dataloader']['dataset'].pop('metainfo')
    (tmp_path / 'ids.txt').write_text('val/a/1.png\nb/0.png')
    report = evaluate(cfg, linear(2))
    found = [image['id'] for image in per_image(report, '10', 'linf-4')]
    assert found == ['a/1.png', 'b/0.png']
    (tmp_path / 'ids.txt').write_text('1.png')
    with pytest.raises(ConfigError, match='which 2 images of the dataset are called'):
        runner_for(cfg).test()
    (tmp_path / 'ids.txt').write_text('val/c/1.png')
    with pytest.raises(ConfigError, match='1 of the 1 images'):
        runner_for(cfg).test()


def test_crops_of_one_file_have_names_of_their_own():
    class Crops:
        def __len__(self):
            return 3

        def get_data_info(self, index):
            return dict(img_path=['a.png', 'a.png', 'b.png'][index], gt_label=0)

    assert ImageList(Crops()).ids == ['a.png', 'a.png#1', 'b.png']


def loader_with(*steps):
    load, pack = dict(type='LoadImageFromFile'), dict(type='mmpretrain.PackInputs')
    return dict(dataset=dict(pipeline=[load, *steps, pack]))


def test_resolutions_of_a_pipeline():
    edge = dict(type='ResizeEdge', scale=232, edge='short', interpolation='bicubic')
    crop = dict(type='CenterCrop', crop_size=224)
    given = loader_with(edge, crop)
    for side, scale in [(224, 256), (256, 292), (320, 365)]:
        loader, note = at_resolution(given, side)
        pipeline = loader['dataset']['pipeline']
        assert pipeline[1] == {**edge, 'scale': scale}
        assert pipeline[2]['crop_size'] == side
        assert note == (
            f'{side}: shorter side {scale}, crop {side} (config: shorter side 232, '
            'crop 224)'
        )
    assert given == loader_with(edge, crop)
    loader, _ = at_resolution(loader_with(dict(type='Resize', scale=32)), 48)
    assert loader['dataset']['pipeline'][1]['scale'] == (48, 48)
    # CIFAR's pictures have their size already; the digits are cut out first.
    loader, note = at_resolution(loader_with(), 40)
    kinds = [step['type'] for step in loader['dataset']['pipeline']]
    assert kinds == ['LoadImageFromFile', 'Resize', 'mmpretrain.PackInputs']
    assert loader['dataset']['pipeline'][1]['scale'] == (40, 40)
    assert note == '40: resize 40 x 40 (config: none)'
    digits = loader_with(dict(type='mmrobust.CropBox'), dict(type='Resize', scale=48))
    loader, _ = at_resolution(digits, 64)
    assert loader['dataset']['pipeline'][2]['scale'] == (64, 64)
    for steps in [
        (crop,),
        (dict(edge, edge='long'), crop),
        (dict(type='Resize', scale=(64, 32)),),
        (dict(type='EfficientNetCenterCrop', crop_size=224),),
        (edge, crop, dict(type='ColorJitter')),
    ]:
        with pytest.raises(ConfigError, match='cannot be brought to other resolutions'):
            at_resolution(loader_with(*steps), 224)
    with pytest.raises(ConfigError, match='resolution=0 must be a whole number'):
        at_resolution(loader_with(), 0)


def test_several_norms_at_several_resolutions(data, tmp_path):
    """The table of the paper, and a shard folder for each cell."""
    cfg = config(
        data, tmp_path, attacks=QUICK[:1], resolutions=[10, 16], threats=THREATS
    )
    pipeline = cfg['test_dataloader']['dataset']['pipeline']
    pipeline.insert(1, dict(type='Resize', scale=(SIDE, SIDE)))
    runner = runner_for(cfg, linear())
    dump = DumpResults(out_file_path=str(tmp_path / 'found.pkl'))
    runner.test_evaluator.metrics.append(dump)
    metrics = runner.test()
    dumps = {path.name for path in tmp_path.glob('*.pkl')}
    assert dumps == {'found.10.pkl', 'found.16.pkl'}
    report = json.loads((tmp_path / 'robustness.json').read_text())
    assert [row['resolution'] for row in report['rows']] == ['10', '16']
    assert {'10/accuracy/top1', '16/accuracy/top1'} <= set(report['benign']['metrics'])
    for row in report['rows']:
        assert set(row['threats']) == {'linf-2', 'l2-20'}
        for name, value in row['threats'].items():
            rows = per_image(report, row['resolution'], name)
            share = 100 * sum(image['robust'] for image in rows) / IMAGES
            assert value == pytest.approx(share)
            assert metrics[f'autoattack/{row["resolution"]}/{name}'] == value
            assert row['all_norms'] <= value <= row['clean']
    text = (tmp_path / 'robustness.md').read_text()
    assert '- 16: resize 16 x 16 (config: (10, 10))' in text


# ------------------------------------------------------------------ members, text


def test_members_are_read():
    text = 'apgd-t:n_iter=20,n_target_classes=3'
    member = Member.read(text)
    assert member == Member.read(dict(type='apgd-t', n_iter=20, n_target_classes=3))
    assert member.as_text() == text
    assert Ensemble.read(None, ['fab']).version == 'custom'
    for value, sentence in [
        ('pgd', "has no member 'pgd'"),
        ('fab:n_queries=3', "fab has no setting 'n_queries'"),
        ('fab:n_iter=x', 'n_iter of fab'),
        ('square:n_queries=0', 'n_queries of square=0 must be a whole number'),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            Member.read(value)
    for version, attacks, sentence in [
        ('standart', None, "no version 'standart'"),
        ('custom', None, 'needs its members'),
        ('plus', ['fab'], 'has its own members'),
        (None, ['fab', 'fab:n_iter=2'], 'names a member twice'),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            Ensemble.read(version, attacks)


# ----------------------------------------------------------------- the command line


@pytest.fixture(scope='module')
def template(data, tmp_path_factory):
    """A classifier's config with mmengine's own loop, and two checkpoints."""
    folder = tmp_path_factory.mktemp('template')
    cfg = config(data, folder)
    cfg.pop('work_dir')
    cfg['test_cfg'] = dict()
    Config(cfg).dump(folder / 'config.py')
    with DefaultScope.overwrite_default_scope('mmengine'):
        for name, classes in (('good', CLASSES), ('five', 5)):
            runner = runner_for(config(data, folder / 'x', classes), linear(classes))
            weights = dict(state_dict=runner.model.state_dict())
            torch.save(weights, folder / f'{name}.pth')
    return folder


@pytest.fixture
def project(template, tmp_path):
    """A copy to be changed."""
    for path in template.glob('*.*'):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def call(project, monkeypatch, capsys):
    """Runs tools/test.py in this process; returns the sentence that it ends with."""
    monkeypatch.chdir(project)
    monkeypatch.setenv('LOCAL_RANK', '0')

    def run(*arguments, checkpoint='good.pth'):
        argv = ['test.py', 'config.py', checkpoint, '--work-dir', 'work', *arguments]
        name = uuid.uuid4().hex
        argv += ['--cfg-options', f'experiment_name={name}']
        monkeypatch.setattr(sys, 'argv', argv)
        capsys.readouterr()
        with DefaultScope.overwrite_default_scope('mmengine'):
            try:
                runpy.run_path(str(TOOL), run_name='__main__')
            except SystemExit as ended:
                code = ended.code
            else:
                return ''
        assert code == 2
        return capsys.readouterr().err

    return run


def test_the_tool(call, project, data):
    """From the command line to both reports, equal to the loop of a config."""
    assert not call(
        *('--attack', 'autoattack', '--norm', 'linf', 'l2', '--eps', '2', '20'),
        *('--members', *QUICK, '--batch-size', '4', '--seed', '3'),
        *('--save-adv', 'adv', '--report', 'out/aa.json'),
    )
    report = json.loads((project / 'out/aa.json').read_text())
    loop = dict(attacks=QUICK, shard_size=4, seed=3, threats=THREATS)
    expected = evaluate(config(data, project / 'loop', **loop), linear())
    for key in ('rows', 'benign', 'labels', 'version', 'shard_size'):
        assert report[key] == expected[key]
    assert report['complete'] is True
    assert report['versions']['pyautoattack'] == pyautoattack.__version__
    assert len(report['checkpoint_sha256']) == 64
    assert '--members' in report['environment']['command']
    assert len(list((project / 'adv/10/l2-20').glob('*.npz'))) == IMAGES
    assert (project / 'out/aa.md').is_file()
    # Other weights under the same name are noticed.
    runner = runner_for(config(data, project / 'x'), linear(scale=0.03))
    torch.save(dict(state_dict=runner.model.state_dict()), project / 'good.pth')
    assert 'weights_sha256 was' in call(
        *('--attack', 'autoattack', '--norm', 'linf', 'l2', '--eps', '2', '20'),
        *('--members', *QUICK, '--batch-size', '4', '--seed', '3'),
        *('--report', 'out/aa.json'),
    )


AUTO = ('--attack', 'autoattack')


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (('--attack', 'autoattack', 'pgd'), 'cannot be combined with other attacks'),
        ((*AUTO, '--norm', 'linf', 'l2', '--eps', '4'), '1 radii for 2 norms'),
        ((*AUTO, '--eps', '0.016'), 'write eps=4.08 if that was meant'),
        ((*AUTO, '--num-steps', '3'), '--num-steps is no setting of autoattack'),
        ((*AUTO, '--members', 'pgd'), "no member 'pgd'"),
        ((*AUTO, '--tta'), '--tta and attacks exclude each other'),
        (
            (*AUTO, '--image-ids', 'gone.txt', '--num-images', '2'),
            'num_images and image_ids exclude each other',
        ),
        ((*AUTO, '--batch-size', '0'), 'shard_size=0 must be a whole number'),
        (('--members', 'fab'), '--members needs --attack autoattack'),
        (('--attack', 'pgd', '--version', 'plus'), '--version is no setting of pgd'),
        (('--attack', 'pgd', '--norm', 'linf', 'l2'), 'only autoattack takes several'),
    ],
)
def test_a_mistake_is_one_sentence(call, arguments, sentence):
    error = call(*arguments)
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert sentence in error


def test_a_checkpoint_for_other_classes(call):
    error = call(checkpoint='five.pth')
    assert "checkpoint 'five.pth' is for 5 classes and the config for 12" in error


def test_detectors_are_refused(call, project, monkeypatch):
    cfg = Config.fromfile(project / 'config.py')
    cfg.default_scope = 'mmdet'
    cfg.dump(project / 'config.py')
    assert 'autoattack works on classifiers only' in call(*AUTO)


def test_a_classifier_without_attack(call, project):
    """The plain test, with predictions written, pictures drawn, and flipped."""
    assert not call('--out', 'plain.pkl', '--show-dir', 'shown')
    plain = pickle.loads((project / 'plain.pkl').read_bytes())
    assert len(plain) == IMAGES
    assert len(list((project / 'work/shown').glob('*.png'))) == IMAGES
    assert not call('--tta', '--out', 'flipped.pkl')
    flipped = pickle.loads((project / 'flipped.pkl').read_bytes())
    assert len(flipped) == IMAGES
    scores = [torch.as_tensor(sample['pred_score']) for sample in plain]
    others = [torch.as_tensor(sample['pred_score']) for sample in flipped]
    assert not torch.allclose(torch.stack(scores), torch.stack(others))
