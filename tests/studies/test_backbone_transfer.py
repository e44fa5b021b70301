"""The transfer study: frozen backbones, whole sweeps, resume, table, mistakes."""

import json
import runpy
import sys
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch
from mmdet.registry import MODELS as DETECTORS
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from mmrobust.utils.models import state_digest
from mmrobust.errors import ConfigError
from mmrobust.studies.backbone_plan import (
    Findings,
    Run,
    Sweep,
    check,
    parse_checkpoints,
)
from mmrobust.studies.backbone_table import Study, figure, summarize
from mmrobust.studies.backbone_transfer import begun, run_config, run_sweep
from torch import nn

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'transfer.py'
TOP1 = 'accuracy/top1'
SIZE = 32


@pytest.fixture(autouse=True)
def _scope(_quiet_and_repeatable):
    init_default_scope('mmpretrain')


def draw_classes(root):
    """Three classes of noisy colours in folders, split into train, val and test."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 3), ('test', 4)):
        for label in range(3):
            folder = root / split / f'class{label}'
            folder.mkdir(parents=True)
            for index in range(count):
                picture = rng.integers(0, 160, (SIZE, SIZE, 3), dtype=np.uint8)
                picture[..., label] += 60
                cv2.imwrite(str(folder / f'{index}.png'), picture)
    return root


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return draw_classes(tmp_path_factory.mktemp('pictures'))


def backbone(**settings):
    return dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        zero_init_residual=False,
        **settings,
    )


def task(pictures, **overrides):
    """A classifier that learns two epochs of three batches."""

    def loader(split, pipeline):
        return dict(
            batch_size=6,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='CustomDataset',
                data_root=str(pictures),
                data_prefix=split,
                serialize_data=False,  # it collects garbage, which takes long
                pipeline=pipeline,
            ),
        )

    load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
    flip = dict(type='RandomFlip', prob=0.5, direction='horizontal')
    cfg = dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmrobust'], allow_failed_imports=False),
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(
                type='ClsDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3
            ),
            backbone=backbone(),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=32),
        ),
        train_dataloader=loader('train', [load, flip, pack]),
        val_dataloader=loader('val', [load, pack]),
        test_dataloader=loader('test', [load, pack]),
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=9),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
        ),
        param_scheduler=dict(type='MultiStepLR', milestones=[1], gamma=0.1),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        visualizer=dict(type='UniversalVisualizer', vis_backends=[]),
        log_level='ERROR',
    )
    cfg.update(overrides)
    return Config(cfg)


def make_backbones(folder):
    """Backbones 0.pth, 2.pth and 4.pth as pre-training would leave them."""
    for eps in (0, 2, 4):
        torch.manual_seed(eps)
        model = MODELS.build(ConfigDict(backbone()))
        state = {f'backbone.{k}': _moved(k, v) for k, v in model.state_dict().items()}
        torch.save(dict(state_dict=state, meta={}), folder / f'{eps}.pth')
    return folder


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    return make_backbones(tmp_path_factory.mktemp('weights'))


def _moved(name, value):
    """Statistics that are not those of a fresh BatchNorm."""
    return value + 0.1 * torch.rand_like(value) if 'running' in name else value


def make_sweep(cfg, weights, work_dir, **settings):
    epses = settings.pop('eps', (0.0, 4.0))
    values = dict(
        checkpoints={eps: str(weights / f'{eps:g}.pth') for eps in epses},
        modes=('fixed', 'full'),
        lrs=(0.05,),
        seeds=(0,),
        norm='l2',
        metric=None,
    )
    return Sweep(cfg=cfg, work_dir=work_dir, **{**values, **settings})


def train(sweep, run, *hooks):
    """Trains one run; returns its runner and the backbone as it was loaded."""
    cfg = run_config(sweep, run)
    cfg.experiment_name = f'test_{uuid.uuid4().hex}'
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    loaded = MODELS.build(cfg.model.backbone)
    loaded.init_weights()
    return runner, loaded


class _Notes(Hook):
    """Images and labels of every batch, and the head before the first."""

    def __init__(self):
        self.batches = []
        self.head = {}

    def before_train(self, runner):
        state = runner.model.head.state_dict()
        self.head = {key: value.clone() for key, value in state.items()}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        labels = torch.cat([s.gt_label for s in data_batch['data_samples']])
        self.batches.append((data_batch['inputs'].clone(), labels))


# ------------------------------------------------------------------ frozen or not


def test_fixed_is_logistic_regression_on_features(pictures, weights, tmp_path):
    """The same head comes out of a plain loop over precomputed features."""
    notes = _Notes()
    sweep = make_sweep(task(pictures), weights, tmp_path)
    runner, loaded = train(sweep, Run(4.0, 'fixed', 0.05, 0), notes)
    assert state_digest(runner.model.backbone) == state_digest(loaded)

    loaded.eval()
    linear = nn.Linear(32, 3)
    linear.load_state_dict({k.removeprefix('fc.'): v for k, v in notes.head.items()})
    before = linear.weight.detach().clone()
    momentum = [torch.zeros_like(p) for p in linear.parameters()]
    assert len(notes.batches) == 6
    for index, (images, labels) in enumerate(notes.batches):
        with torch.no_grad():
            pixels = (images.float() - 127.5) / 64.0
            features = loaded(pixels)[-1].mean((2, 3))
        loss = nn.functional.cross_entropy(linear(features), labels)
        grads = torch.autograd.grad(loss, list(linear.parameters()))
        lr = 0.05 if index < 3 else 0.005
        with torch.no_grad():
            for p, grad, buffer in zip(
                linear.parameters(), grads, momentum, strict=True
            ):
                buffer.mul_(0.9).add_(grad + 5e-4 * p)
                p.sub_(lr * buffer)
    assert (linear.weight - before).abs().max() > 1e-3
    for key, value in runner.model.head.state_dict().items():
        own = linear.state_dict()[key.removeprefix('fc.')]
        torch.testing.assert_close(value, own, rtol=1e-4, atol=1e-6)


def test_fixed_drops_nothing_and_lets_gradients_through(pictures, tmp_path):
    """Drop path would make two passes differ; an attack needs the input's gradient."""
    arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    net = dict(type='ConvNeXt', arch=arch, drop_path_rate=0.9, layer_scale_init_value=1)
    model = MODELS.build(ConfigDict(net))
    torch.save(model.state_dict(), tmp_path / '0.pth')
    cfg = task(pictures)
    cfg.model.backbone = ConfigDict(net)
    cfg.model.neck = None
    cfg.model.head.in_channels = 8
    cfg.train_cfg = dict(
        type='mmrobust.AdvEpochBasedTrainLoop',
        max_epochs=1,
        adversary=dict(type='mmrobust.PGDAdversary', eps=8, num_steps=1),
    )
    sweep = make_sweep(cfg, tmp_path, tmp_path, eps=(0.0,))
    runner, loaded = train(sweep, Run(0.0, 'fixed', 0.05, 0))
    assert state_digest(runner.model.backbone) == state_digest(loaded)
    runner.model.train()
    images = torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    outputs = [runner.model.backbone(images)[-1] for _ in range(2)]
    assert torch.equal(*outputs)
    # Not the sum, which the last LayerNorm makes a constant.
    (outputs[0] * torch.rand_like(outputs[0])).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_freezing_what_is_not_there(build_runner):
    def hook(name):
        return [dict(type='mmrobust.FreezeBackboneHook', module=name)]

    with pytest.raises(ConfigError, match=r"FCOS has no 'bone' with weights"):
        build_runner(custom_hooks=hook('bone')).train()
    with pytest.raises(ConfigError, match='nothing is left to learn'):
        build_runner(custom_hooks=hook('')).train()


def test_a_frozen_part_that_changes_is_noticed(build_runner):
    class Writes(Hook):
        def after_train_epoch(self, runner):
            runner.model.backbone.bn1.running_mean += 1

    runner = build_runner(custom_hooks=[dict(type='mmrobust.FreezeBackboneHook')])
    runner.register_hook(Writes())
    with pytest.raises(ConfigError, match="'backbone' was frozen and has changed"):
        runner.train()


# ---------------------------------------------------------------------- whole sweeps


class Killed(BaseException):
    """What a signal does."""


def test_a_killed_sweep_gives_the_same_table(
    pictures, weights, tmp_path, monkeypatch, capsys
):
    cfg = task(pictures)
    whole = run_sweep(make_sweep(cfg, weights, tmp_path / 'a'), [])

    sweep = make_sweep(cfg, weights, tmp_path / 'b')
    step = EpochBasedTrainLoop.run_iter
    counted = {'updates': 0}

    def run_iter(self, *args):
        counted['updates'] += 1
        if counted['updates'] == 17:  # in the second epoch of the third run
            raise Killed
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(EpochBasedTrainLoop, 'run_iter', run_iter)
        with pytest.raises(Killed):
            run_sweep(sweep, [])
    partial = json.loads((tmp_path / 'b/transfer.json').read_text())
    assert not partial['complete']
    assert len(partial['runs']) == 2
    text = (tmp_path / 'b/transfer.md').read_text()
    assert '**Not complete: 2 of 4 runs to go.**' in text
    capsys.readouterr()

    counted['updates'] = 100
    monkeypatch.setattr(EpochBasedTrainLoop, 'run_iter', run_iter)
    again = run_sweep(sweep, [])
    assert '2 are done, 1 begun' in capsys.readouterr().out
    assert counted['updates'] == 100 + 3 + 6  # no update twice
    resumed = [r['resumed'] for r in again.results.values() if r]
    assert resumed == [False, False, True, False]
    assert again.rows == whole.rows
    # Not only the same accuracy: the same weights.
    for run in sweep.runs():
        ends = [
            torch.load(tmp_path / name / 'runs' / run.name / 'epoch_2.pth')
            for name in 'ab'
        ]
        for key, value in ends[0]['state_dict'].items():
            assert torch.equal(value, ends[1]['state_dict'][key]), (run.name, key)
    # A third time there is nothing to do.
    assert run_sweep(sweep, []).complete
    assert counted['updates'] == 100 + 3 + 6


def test_a_checkpoint_cut_short_is_not_resumed_from(tmp_path):
    content = dict(state_dict={}, meta={}, optimizer={})
    torch.save(content, tmp_path / 'epoch_9.pth')
    (tmp_path / 'epoch_10.pth').write_bytes(b'PK\x03\x04 cut short')
    assert begun(tmp_path) == str(tmp_path / 'epoch_9.pth')
    assert begun(tmp_path / 'nothing') is None
    (tmp_path / 'epoch_9.pth').unlink()
    assert begun(tmp_path) is None


def test_other_settings_do_not_join_a_sweep(pictures, weights, tmp_path):
    def run(cfg, folder=weights, **settings):
        values = dict(modes=('fixed',), eps=(0.0,))
        return run_sweep(
            make_sweep(cfg, folder, tmp_path, **{**values, **settings}), []
        )

    run(task(pictures))
    # More of everything is welcome, and so is another number of workers.
    cfg = task(pictures)
    cfg.val_dataloader.num_workers = 1
    study = run(cfg, eps=(0.0, 2.0))
    assert [row['eps'] for row in study.rows] == [0.0, 2.0]
    cfg = task(pictures)
    cfg.optim_wrapper.optimizer.weight_decay = 0.25
    cfg.train_cfg.max_epochs = 3
    with pytest.raises(ConfigError) as caught:
        run(cfg)
    assert 'train_cfg.max_epochs was 2 and is 3' in str(caught.value)
    assert 'weight_decay was 0.0005 and is 0.25' in str(caught.value)
    other = tmp_path / 'other'
    other.mkdir()
    (other / '0.pth').write_bytes((weights / '4.pth').read_bytes())
    with pytest.raises(ConfigError, match=r'checkpoints.eps 0 was '):
        run(task(pictures), other)
    with pytest.raises(ConfigError, match="norm was 'l2' and is 'linf'"):
        run(task(pictures), norm='linf')


def test_detectors(coco, tmp_path):
    """Frozen against full; the config's own frozen stages stay so in both."""
    init_default_scope('mmdet')
    model = tiny.fcos()
    model['backbone'].update(frozen_stages=1, norm_eval=False)
    for eps in (0, 4):
        torch.manual_seed(eps)
        net = DETECTORS.build(ConfigDict(tiny.fcos()['backbone']))
        torch.save(net.state_dict(), tmp_path / f'{eps}.pth')
    cfg = Config(tiny.runner_config(coco, tmp_path / 'work', model))
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.serialize_data = False
    study = run_sweep(make_sweep(cfg, tmp_path, tmp_path / 'work'), [])
    assert study.complete
    assert study.found.metric == 'coco/bbox_mAP'
    rows = [(row['eps'], row['mode']) for row in study.rows]
    assert rows == [(eps, mode) for eps in (0.0, 4.0) for mode in ('fixed', 'full')]
    text = (tmp_path / 'work/transfer.md').read_text()
    assert 'keeps what the config itself freezes (frozen_stages=1)' in text
    for run in study.sweep.runs():
        state = torch.load(study.sweep.folder(run) / 'epoch_1.pth')['state_dict']
        start = torch.load(tmp_path / f'{run.eps:g}.pth')
        same = {
            name: torch.equal(value, state[f'backbone.{name}'])
            for name, value in start.items()
        }
        assert same['conv1.weight']
        assert same['layer1.0.conv1.weight']
        assert same['layer2.0.conv1.weight'] is (run.mode == 'fixed')
        assert all(same.values()) is (run.mode == 'fixed')


# -------------------------------------------------------------------- the statistics


def result(eps, mode, lr, seed, *values):
    value, selected_by = values if len(values) == 2 else (values[0], values[0])
    return dict(
        eps=eps, mode=mode, lr=lr, seed=seed, value=value, selected_by=selected_by
    )


def test_statistics_are_numpys():
    values = [71.25, 70.0, 73.5]
    rows = summarize([result(3.0, 'full', 0.1, s, v) for s, v in enumerate(values)])
    (row,) = rows
    assert row['mean'] == pytest.approx(np.mean(values))
    assert row['std'] == pytest.approx(np.std(values, ddof=1))
    assert row['values'] == {'0': 71.25, '1': 70.0, '2': 73.5}
    (single,) = summarize([result(3.0, 'full', 0.1, 0, 5.0)])
    assert (single['mean'], single['std'], single['n']) == (5.0, None, 1)


def test_the_rate_is_chosen_by_validation_per_eps_and_mode():
    rows = summarize(
        [
            # Mean validation 62 against 61, the worse on the test set.
            result(0.0, 'full', 0.01, 0, 50.0, 64.0),
            result(0.0, 'full', 0.01, 1, 52.0, 60.0),
            result(0.0, 'full', 0.001, 0, 70.0, 61.0),
            result(0.0, 'full', 0.001, 1, 72.0, 61.0),
            # Elsewhere the other rate; a run that diverged is never chosen.
            result(4.0, 'full', 0.01, 0, None),
            result(4.0, 'full', 0.001, 0, 30.0),
            # One rate has been tried with both seeds so far, and is taken.
            result(4.0, 'fixed', 0.01, 0, 99.0),
            result(4.0, 'fixed', 0.001, 0, 40.0),
            result(4.0, 'fixed', 0.001, 1, 42.0),
        ]
    )
    chosen = {(row['eps'], row['mode']): (row['lr'], row['mean']) for row in rows}
    assert chosen == {
        (0.0, 'full'): (0.01, 51.0),
        (4.0, 'full'): (0.001, 30.0),
        (4.0, 'fixed'): (0.001, 41.0),
    }


def make_study(pictures, results, **settings):
    sweep = make_sweep(
        task(pictures), Path('weights'), Path('work'), seeds=(0, 1), **settings
    )
    found = Findings(
        metric=TOP1, hashes=dict.fromkeys(sweep.checkpoints, 'abc'), backbones={}
    )
    found.backbones = dict.fromkeys(sweep.checkpoints, '')
    by_run = dict.fromkeys(sweep.runs())
    for entry in results:
        run = Run(*(entry[key] for key in ('eps', 'mode', 'lr', 'seed')))
        by_run[run] = {**entry, 'versions': {}}
    return Study(sweep, found, by_run, ['python', 'tools/transfer.py', 'a b.py'])


def test_the_table(pictures):
    results = [
        result(eps, mode, 0.05, seed, value + 2 * seed)
        for eps, mode, value in (
            (0.0, 'fixed', 50.0),
            (0.0, 'full', 80.0),
            (4.0, 'fixed', 60.0),
        )
        for seed in (0, 1)
    ]
    results.append(result(4.0, 'full', 0.05, 0, 78.5))
    study = make_study(pictures, results)
    assert study.table().splitlines() == [
        '| eps (l2) | fixed | change from eps 0 | full | change from eps 0 |',
        '| ---: | ---: | ---: | ---: | ---: |',
        '| 0 | 51.00 ± 1.41 |  | **81.00** ± 1.41 |  |',
        '| 4 | **61.00** ± 1.41 | +10.00 | 78.50 (1 of 2 seeds) | -2.50 |',
    ]
    text = study.markdown()
    assert 'Not complete: 1 of 8 runs to go' in text
    assert "python tools/transfer.py 'a b.py'" in text
    content = study.as_dict()
    assert content['checkpoints'][1] == dict(
        eps=4.0, path='weights/4.pth', sha256='abc', backbone_sha256=''
    )
    assert content['norm'] == 'l2'
    assert content['versions']['torch']


def test_the_picture_shows_eps_0_and_the_spread():
    rows = summarize(
        [
            result(eps, mode, 0.05, seed, 50 + eps + seed)
            for eps in (0.0, 0.01, 0.5, 5.0)
            for mode in ('fixed', 'full')
            for seed in (0, 1)
        ]
    )
    (axes,) = figure(rows, TOP1, 'l2', 2).axes
    assert axes.get_xscale() == 'symlog'
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ['0', '0.01', '0.5', '5']
    modes = [text.get_text() for text in axes.get_legend().get_texts()]
    assert modes == ['fixed', 'full']
    # Ticks are apart on the page, also 0 and the smallest eps.
    places = axes.transData.transform([(tick, 0) for tick in axes.get_xticks()])[:, 0]
    assert np.diff(places).min() > 0.05 * (places[-1] - places[0])
    bars = axes.containers[0]
    assert bars.lines[0].get_ydata().tolist() == [50.5, 50.51, 51.0, 55.5]
    (segments,) = bars.lines[2]
    low, high = segments.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * np.std([50, 51], ddof=1))
    assert (axes.get_ylabel(), 'l2' in axes.get_xlabel()) == (TOP1, True)


# ---------------------------------------------------------------- the command's end


def test_pairs_of_eps_and_file():
    found = parse_checkpoints(['8=b=c.pth', '0.25=a.pth', '0=http://x/y.pth'])
    assert list(found.items()) == [
        (0.0, 'http://x/y.pth'),
        (0.25, 'a.pth'),
        (8.0, 'b=c.pth'),
    ]
    # The command line takes it for an option.
    with pytest.raises(ConfigError, match='with an eps of at least 0'):
        parse_checkpoints(['-1=a.pth'])


@pytest.fixture
def tool(pictures, weights, tmp_path, monkeypatch, capsys):
    """Runs the command; returns what it prints, or its sentence if it fails."""
    config = tmp_path / 'config.py'
    task(pictures).dump(config)
    (tmp_path / 'cut.pth').write_bytes((weights / '4.pth').read_bytes()[:5000])
    (tmp_path / 'same.pth').write_bytes((weights / '0.pth').read_bytes())
    torch.save(dict(state_dict=dict(a=torch.zeros(2))), tmp_path / 'other.pth')
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    updates = []

    def run_iter(*args):
        updates.append(1)

    def run(*arguments, fails=True, checkpoints=''):
        given = checkpoints.split() or [f'0={weights}/0.pth', f'4={weights}/4.pth']
        argv = [str(TOOL), str(config), '--checkpoints', *given]
        argv += ['--work-dir', str(tmp_path / 'work'), *arguments]
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', argv)
            if not fails:
                runpy.run_path(str(TOOL), run_name='__main__')
                return capsys.readouterr().out
            patch.setattr(EpochBasedTrainLoop, 'run_iter', run_iter)
            with pytest.raises(SystemExit) as caught:
                runpy.run_path(str(TOOL), run_name='__main__')
        assert caught.value.code == 2
        captured = capsys.readouterr()
        assert captured.err.startswith('error: ')
        assert captured.err.count('\n') == 1
        assert not updates, 'something was trained'
        assert not (tmp_path / 'work' / 'runs').exists()
        return captured.err.removeprefix('error: ').strip()

    return run


def test_the_command(tool, weights, tmp_path):
    rates = ['--lr', '0.05', '0.005', '--norm', 'l2']
    output = tool(*rates, checkpoints=f'4={weights}/4.pth', fails=False)
    assert '4 runs: 1 eps x 2 modes x 2 learning rates x 1 seeds; 0 are done' in output
    assert '| eps (l2) | fixed |' in output
    work = tmp_path / 'work'
    content = json.loads((work / 'transfer.json').read_text())
    assert content['complete']
    assert content['selection'] == TOP1
    chosen = 'Learning rates were chosen by accuracy/top1 on the validation set.'
    assert chosen in content['checks']
    for entry in content['runs']:
        # Two different sets of pictures, both evaluated after the last update.
        assert entry['selected_by'] == entry['validation'][TOP1]
        assert entry['value'] == entry['metrics'][TOP1]
        assert entry['updates'] == 6
        frozen = entry['parameters'] - entry['trainable_parameters']
        assert (frozen > 0) is (entry['mode'] == 'fixed')
    fixed = [entry for entry in content['runs'] if entry['mode'] == 'fixed']
    loaded = {c['eps']: c['backbone_sha256'] for c in content['checkpoints']}
    assert all(entry['backbone_sha256'] == loaded[entry['eps']] for entry in fixed)
    picture = cv2.imread(str(work / 'transfer.png'))
    assert picture is not None
    assert picture.std() > 5
    assert not list(work.glob('.*'))


@pytest.mark.parametrize(
    ('arguments', 'checkpoints', 'sentence'),
    [
        ('', 'a.pth', "'a.pth' must be EPS=FILE"),
        ('', 'x=a.pth', 'must be EPS=FILE'),
        ('', '4=a.pth nan=b.pth', 'must be EPS=FILE'),
        ('', 'inf=a.pth', 'must be EPS=FILE'),
        ('', '4=a.pth 4.0=b.pth', 'has eps 4 twice'),
        ('', '4=missing.pth', "eps 4: checkpoint 'missing.pth' does not exist"),
        ('', '4=cut.pth', "'cut.pth' cannot be read"),
        ('', '4=other.pth', "'other.pth'"),
        ('', '0=same.pth 4={weights}/0.pth', 'hold the same weights'),
        ('--modes half', '', "invalid choice: 'half'"),
        ('--modes full full', '', '--modes has full twice'),
        ('--lr x', '', "--lr: invalid float value: 'x'"),
        ('--lr 0.1 1e-1', '', '--lr has 0.1 twice'),
        ('--seeds 1.5', '', "--seeds: invalid int value: '1.5'"),
        ('--metric accuracy/top5', '', 'choose from accuracy/top1'),
        (
            '--cfg-options model.head.num_classes=5',
            '',
            'train_dataloader: the model has 5 classes and the dataset has 3',
        ),
        ('--cfg-options load_from=a.pth', '', 'has load_from or resume'),
        ('--cfg-options test_cfg=None', '', 'has no test_cfg'),
        ('--cfg-options model.backbone=None', '', 'has no model.backbone'),
    ],
)
def test_mistakes_end_before_the_first_update(
    tool, weights, arguments, checkpoints, sentence
):
    said = tool(*arguments.split(), checkpoints=checkpoints.format(weights=weights))
    assert sentence in said


def test_weights_that_the_model_overwrites_are_refused(
    pictures, weights, tmp_path, monkeypatch
):
    """mmengine's models may initialise more after a backbone has been loaded."""

    def init_weights(self):
        super(ImageClassifier, self).init_weights()
        nn.init.zeros_(self.backbone.layer3[0].bn2.weight)

    monkeypatch.setattr(ImageClassifier, 'init_weights', init_weights)
    with pytest.raises(ConfigError, match='after they have been loaded'):
        run_sweep(make_sweep(task(pictures), weights, tmp_path), [])
    assert not (tmp_path / 'runs').exists()


def test_choosing_rates_on_the_test_set_is_said(pictures, weights, tmp_path):
    cfg = task(pictures)
    cfg.val_dataloader = cfg.test_dataloader
    found = check(make_sweep(cfg, weights, tmp_path, lrs=(0.05, 0.005)))
    assert found.selection is None
    assert 'The learning rates were chosen on the test set' in found.notes[0]


def test_robust_accuracy_after_transfer(pictures, weights, tmp_path):
    """Attacks of the config's test are figures to compare, too."""
    cfg = task(pictures)
    attack = dict(type='mmrobust.PGD', eps=8, num_steps=1)
    cfg.test_cfg = dict(type='mmrobust.AttackTestLoop', attacks=dict(pgd=attack))
    settings = dict(modes=('fixed',), eps=(0.0,), metric=f'pgd/{TOP1}')
    study = run_sweep(make_sweep(cfg, weights, tmp_path, **settings), [])
    (entry,) = study.as_dict()['runs']
    assert entry['value'] == entry['metrics'][f'pgd/{TOP1}']
