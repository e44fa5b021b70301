"""tools/train.py and tools/test.py: flags, what they do, whole runs as a user's."""

import argparse
import json
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import mmengine.device
import pytest
import tiny
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation import CocoMetric
from mmdet.models.detectors import SingleStageDetector
from mmengine.config import Config
from mmengine.runner import Runner
from mmrobust.attacks import ATTACK_NAMES, OPTIONS
from mmrobust.evaluation.attacker import Attacker

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'


# ---------------------------------------------------------------------- the flags


def parser_of(script, monkeypatch):
    """The parser that a script builds, caught before it reads anything."""
    caught = []

    class Caught(Exception):
        pass

    def parse_args(self, *args):
        caught.append(self)
        raise Caught

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
        try:
            runpy.run_path(str(script), run_name='__main__')
        except Caught:
            return caught[0]
    raise AssertionError(f'{script} parsed nothing')


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_all_of_mmdets_flags_are_there(tool, monkeypatch):
    """With the same names, kinds and defaults, so that scripts keep working."""
    theirs = parser_of(MMDET_TOOLS / tool, monkeypatch)
    ours = parser_of(TOOLS / tool, monkeypatch)
    found = {tuple(a.option_strings) or a.dest: a for a in ours._actions}
    assert len(theirs._actions) >= 8
    for expected in theirs._actions:
        action = found[tuple(expected.option_strings) or expected.dest]
        assert type(action).__name__ == type(expected).__name__
        for attribute in ('dest', 'nargs', 'const', 'default', 'choices'):
            assert getattr(action, attribute) == getattr(expected, attribute)
        text = (expected.type, action.type)
        assert text[0] == text[1] or set(text) == {None, str}
    assert [a.dest for a in ours._actions if not a.option_strings] == [
        a.dest for a in theirs._actions if not a.option_strings
    ]


def test_help_describes_every_attack(monkeypatch):
    """By its own text, and with the options that it has."""
    text = ' '.join(parser_of(TOOLS / 'test.py', monkeypatch).format_help().split())
    for name in ATTACK_NAMES:
        assert re.search(rf' {name} [\w ,]+: ', text.split('their search')[1]), name
    for option in OPTIONS:
        assert f'--{option.replace("_", "-")}' in text


PGD = ('--attack', 'pgd')

# ------------------------------------------------------ what reaches the runner


@pytest.fixture
def config_of(project, tmp_path, monkeypatch):
    """The config that a tool hands to the runner."""

    class Stop(Exception):
        pass

    def from_cfg(cfg):
        seen.append(cfg)
        raise Stop

    seen = []
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)

    def run(tool, *arguments, config=None):
        name = 'config.py' if tool == 'train.py' else 'standard.py'
        positional = [str(config or project / name)]
        if tool == 'test.py':
            positional.append(str(project / 'good.pth'))
        work = ['--work-dir', str(tmp_path / 'work')]
        monkeypatch.setattr(sys, 'argv', [tool, *positional, *work, *arguments])
        with monkeypatch.context() as patch:
            patch.setattr(Runner, 'from_cfg', from_cfg)
            with pytest.raises(Stop):
                runpy.run_path(str(TOOLS / tool), run_name='__main__')
        return seen[-1]

    return run


def test_attack_flags_reach_the_loop(config_of):
    cfg = config_of(
        'test.py',
        *('--attack', 'pgd', 'cwa', 'fgsm', '--eps', '8/255', '--step-size', '2'),
        *('--num-steps', '7', '--restarts', '2', '--seed', '3', '--num-images', '4'),
        *('--save-adv', 'adv', '--report', 'mine.json'),
    )
    loop = cfg.test_cfg
    assert loop.type == 'mmrobust.AttackTestLoop'
    assert list(loop.attacks) == ['pgd', 'cwa', 'fgsm']
    for name in ('pgd', 'cwa'):
        attack = loop.attacks[name]
        assert (attack.eps, attack.step_size) == ('8/255', '2')
        assert (attack.num_steps, attack.restarts) == (7, 2)
    assert loop.attacks.fgsm.num_steps == 1
    assert (loop.seed, loop.num_images) == (3, 4)
    assert (loop.save_adv, loop.report) == ('adv', 'mine.json')
    assert cfg.default_hooks.attack_visualization.type.startswith('mmrobust.')
    assert 'out_dir' not in cfg.default_hooks.attack_visualization


def test_several_values_are_curves(config_of):
    cfg = config_of(
        'test.py',
        *('--attack', 'noise', 'fgsm', 'pgd', 'square', '--eps', '2', '8/255'),
        *('--num-steps', '5', '10'),
    )
    found = {
        name: (attack.eps, attack.get('num_steps', attack.get('num_queries')))
        for name, attack in cfg.test_cfg.attacks.items()
    }
    assert found == {
        'noise-eps2': ('2', None),
        'noise-eps8_255': ('8/255', None),
        'fgsm-eps2': ('2', 1),
        'fgsm-eps8_255': ('8/255', 1),
        'pgd-eps2-steps5': ('2', 5),
        'pgd-eps2-steps10': ('2', 10),
        'pgd-eps8_255-steps5': ('8/255', 5),
        'pgd-eps8_255-steps10': ('8/255', 10),
        'square-eps2-steps5': ('2', 5),
        'square-eps2-steps10': ('2', 10),
        'square-eps8_255-steps5': ('8/255', 5),
        'square-eps8_255-steps10': ('8/255', 10),
    }
    # One value is none, and an ensemble has no steps to vary.
    steps = ('--num-steps', '5', '10')
    loop = config_of('test.py', *PGD, '--eps', '2', *steps).test_cfg
    assert list(loop.attacks) == ['pgd-steps5', 'pgd-steps10']
    arguments = ('--attack', 'pgd', 'ensemble', '--version', 'fast', *steps)
    loop = config_of('test.py', *arguments).test_cfg
    assert list(loop.attacks) == ['pgd-steps5', 'pgd-steps10', 'ensemble']
    assert loop.attacks.ensemble == dict(
        type='mmrobust.Ensemble', norm='linf', eps=4, version='fast'
    )


def test_a_curve_costs_one_benign_pass(config_of, tmp_path, monkeypatch):
    """From the command line to the tables of the report."""
    arguments = ('--eps', '2', '4', '--num-steps', '1', '2', '--num-images', '2')
    cfg = config_of('test.py', *PGD, *arguments)
    predictions = []
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    predict = Attacker.predict

    def counted(*args):
        predictions.append(1)
        return predict(*args)

    monkeypatch.setattr(Attacker, 'predict', counted)
    runner = Runner.from_cfg(cfg)
    runner.test()
    assert len(predictions) == 2 * (1 + 4)
    report = json.loads((tmp_path / 'work' / 'robustness.json').read_text())
    assert {each['base'] for each in report['attacks']} == {'pgd'}
    text = (tmp_path / 'work' / 'robustness.md').read_text()
    curves = text.split('## Curves')[1].split('\n## ')[0]
    heads = [line for line in curves.splitlines() if line.startswith('| eps')]
    assert heads == ['| eps (linf) | pgd, 1 steps | pgd, 2 steps |']
    heads = [line for line in curves.splitlines() if line.startswith('| steps')]
    assert heads == ['| steps | pgd, eps 2 | pgd, eps 4 |']
    rows = [line.split('|')[1].strip() for line in curves.splitlines() if '|' in line]
    assert rows == [
        *('eps (linf)', '---', '0 (benign)', '2', '4'),
        *('steps', '---', '0 (benign)', '1', '2'),
    ]


def test_the_configs_loop_keeps_what_the_flags_leave_open(config_of, project, tmp_path):
    """--attack replaces the attacks, not the frame of the boxes or the seed."""
    config = tmp_path / 'child.py'
    config.write_text(
        f'_base_ = {str(project / "standard.py")!r}\n'
        "test_cfg = dict(_delete_=True, type='mmrobust.AttackTestLoop', seed=5,\n"
        "    gt_frame='input', fp16=True, num_images=3, space='original',\n"
        '    quantize=True, check_images=1, gallery=2, resume=False,\n'
        "    attacks=dict(mine=dict(type='mmrobust.RandomNoise', eps=1)))\n"
    )
    kept = config_of('test.py', config=config).test_cfg
    assert list(kept.attacks) == ['mine']
    loop = config_of(
        'test.py', '--attack', 'pgd', '--num-images', '2', config=config
    ).test_cfg
    assert list(loop.attacks) == ['pgd']
    assert (loop.gt_frame, loop.seed, loop.fp16) == ('input', 5, True)
    assert loop.num_images == 2
    assert (loop.space, loop.quantize, loop.check_images) == ('original', True, 1)
    assert (loop.gallery, loop.resume) == (2, False)
    arguments = (*PGD, '--space', 'input', '--check-images', '0')
    loop = config_of('test.py', *arguments, config=config).test_cfg
    assert (loop.space, loop.quantize, loop.check_images) == ('input', True, 0)
    # Without --attack, the config's own attacks on fewer images.
    loop = config_of('test.py', '--num-images', '1', config=config).test_cfg
    assert (list(loop.attacks), loop.num_images) == (['mine'], 1)


def test_speed_reaches_the_loops(config_of, project, tmp_path):
    flags = ('--autocast', '--channels-last', '--compile')
    speed = dict(autocast='bfloat16', channels_last=True, compile=True)
    assert config_of('test.py', *PGD, *flags).test_cfg.speed == speed
    assert 'speed' not in config_of('test.py', *PGD).test_cfg
    assert config_of('train.py', *flags).train_cfg.speed == speed
    assert 'speed' not in config_of('train.py').train_cfg
    # Beside what the config has.
    config = tmp_path / 'child.py'
    config.write_text(
        f'_base_ = {str(project / "standard.py")!r}\n'
        "test_cfg = dict(_delete_=True, type='mmrobust.AttackTestLoop',\n"
        "    speed=dict(compile=dict(mode='max-autotune')),\n"
        "    attacks=dict(mine=dict(type='mmrobust.RandomNoise', eps=1)))\n"
    )
    kept = config_of('test.py', *PGD, config=config).test_cfg
    assert kept.speed == dict(compile=dict(mode='max-autotune'))
    both = dict(kept.speed, autocast='bfloat16')
    assert config_of('test.py', '--autocast', config=config).test_cfg.speed == both
    changed = config_of('test.py', *PGD, '--autocast', config=config).test_cfg
    assert changed.speed == both


def test_without_attacks_the_test_is_mmdets(config_of):
    cfg = config_of('test.py')
    assert cfg.test_cfg == dict(type='TestLoop')
    assert 'attack_visualization' not in cfg.default_hooks


def test_show_dir_shows_benign_and_attacked(config_of):
    cfg = config_of('test.py', '--attack', 'fgsm', '--show-dir', 'shown')
    assert cfg.default_hooks.visualization.draw is True
    assert cfg.default_hooks.visualization.test_out_dir == 'shown'
    assert cfg.default_hooks.attack_visualization.out_dir == 'shown'


def test_tta_wraps_the_model(config_of):
    cfg = config_of('test.py', '--tta')
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.model.module.type == 'FCOS'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'


def test_a_standard_config_is_made_robust(config_of, project, tmp_path):
    """--robust first, then --cfg-options, which have the last word."""
    config = tmp_path / 'child.py'
    config.write_text(
        f'_base_ = {str(project / "standard.py")!r}\ntrain_cfg = dict(max_epochs=8)\n'
    )
    cfg = config_of(
        'train.py',
        *('--robust', 'free', '--eps', '8/255', '--replays', '2', '--schedule', '1'),
        *('--cfg-options', 'optim_wrapper.optimizer.lr=0.5'),
        config=config,
    )
    assert cfg.train_cfg.type == 'mmrobust.AdvEpochBasedTrainLoop'
    assert cfg.train_cfg.max_epochs == 4
    assert cfg.train_cfg.adversary.replays == 2
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert list(cfg.test_cfg.attacks) == ['noise', 'pgd']


def test_a_robust_config_is_written(project, tmp_path, monkeypatch):
    """Readable, alone, and nothing else: no work dir, no training."""
    monkeypatch.chdir(tmp_path)
    name = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
    command = ['train.py', name, '--robust', 'pgd', '--num-steps', '2']
    monkeypatch.setattr(sys, 'argv', [*command, '--dump', 'out/mine.py'])
    runpy.run_path(str(TOOLS / 'train.py'), run_name='__main__')
    assert [path.name for path in tmp_path.rglob('*')] == ['out', 'mine.py']
    cfg = Config.fromfile(tmp_path / 'out' / 'mine.py')
    head, _, changes = (tmp_path / 'out' / 'mine.py').read_text().partition('\n')
    assert head == '# Changed in the config:'
    assert '# optim_wrapper: optimizer SGD(lr=0.01, ' in changes
    assert cfg.train_cfg.adversary.num_steps == 2
    assert cfg.custom_imports.imports == ['mmrobust']
    assert 'work_dir' not in cfg
    assert 'launcher' not in cfg


def test_resuming(config_of, project):
    checkpoint = str(project / 'good.pth')
    cfg = config_of('train.py', '--resume', checkpoint)
    assert (cfg.resume, cfg.load_from) == (True, checkpoint)
    cfg = config_of('train.py', '--resume')
    assert (cfg.resume, cfg.load_from) == (True, None)
    cfg = config_of('train.py')
    assert not cfg.get('resume')


@pytest.mark.parametrize(
    ('device', 'kind', 'settings'),
    [
        ('cpu', 'mmrobust.BFloat16OptimWrapper', {}),
        ('cuda', 'AmpOptimWrapper', dict(loss_scale='dynamic', dtype='float16')),
    ],
)
def test_mixed_precision(config_of, monkeypatch, device, kind, settings):
    """As mmdet's own flag; on a CPU in the one format that CPUs compute with."""
    monkeypatch.setattr(mmengine.device, 'get_device', lambda: device)
    given = ('optim_wrapper.loss_scale=512.0', 'optim_wrapper.dtype=float16')
    cfg = config_of('train.py', '--amp', '--cfg-options', *given)
    assert cfg.optim_wrapper.type == kind
    found = {k: v for k, v in cfg.optim_wrapper.items() if k in ('loss_scale', 'dtype')}
    assert found == settings
    assert (
        cfg.optim_wrapper.optimizer.lr
        == config_of('train.py').optim_wrapper.optimizer.lr
    )


def test_scaling_the_learning_rate(config_of):
    cfg = config_of(
        'train.py',
        *('--auto-scale-lr', '--cfg-options'),
        *('auto_scale_lr.enable=False', 'auto_scale_lr.base_batch_size=16'),
    )
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)


# ------------------------------------------------------- errors of somebody else


@pytest.mark.parametrize(
    ('owner', 'method', 'calls', 'where'),
    [
        (SingleStageDetector, 'loss', 1, 'asking the model for its losses, before any'),
        (SingleStageDetector, 'loss', 2, 'attacking image 10 with pgd'),
        (SingleStageDetector, 'predict', 1, 'predicting on image 10'),
        (CocoMetric, 'compute_metrics', 1, 'computing the metrics of'),
        (PackDetInputs, 'transform', 1, 'testing'),
    ],
)
def test_an_error_of_somebody_else_keeps_its_traceback(
    project, tmp_path, monkeypatch, capsys, owner, method, calls, where
):
    """Its type, too; lines before it say which pass, image and stage."""
    stock, left = getattr(owner, method), calls

    def fail(*args, **kwargs):
        nonlocal left
        left -= 1
        if left <= 0:
            raise ZeroDivisionError('out of luck')
        return stock(*args, **kwargs)

    monkeypatch.setattr(owner, method, fail)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    arguments = [str(project / 'standard.py'), str(project / 'good.pth'), *PGD]
    arguments += ['--num-steps', '1', '--work-dir', 'work']
    monkeypatch.setattr(sys, 'argv', ['test.py', *arguments])
    with pytest.raises(ZeroDivisionError, match='out of luck') as caught:
        runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')
    assert caught.traceback[-1].name == 'fail'
    err = capsys.readouterr().err
    assert re.match(r'error while testing:\n(error while .*:\n)*', err), err
    assert f'error while {where}' in err


# ------------------------------------------------------- as a user runs them


def execute(folder, *arguments):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    environment.pop('LOCAL_RANK', None)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


# Both in one process: it takes longer to start than all else.
COMMANDS = """
import runpy, sys
for command in (TRAIN, TEST):
    sys.argv = command
    runpy.run_path(command[0], run_name='__main__')
"""


def test_train_then_attack(project, tmp_path):
    """The two commands of the README, one pass of training, pictures included."""
    checkpoint = tmp_path / 'run' / 'epoch_1.pth'
    work = ['--work-dir', 'run']
    train = [str(TOOLS / 'train.py'), str(project / 'config.py'), *work]
    test = [str(TOOLS / 'test.py'), str(project / 'standard.py'), str(checkpoint)]
    test += [*work, '--attack', 'fgsm', '--eps', '8']
    test += ['--show-dir', 'shown', '--out', 'p.pkl']
    text = COMMANDS.replace('TRAIN', repr(train)).replace('TEST', repr(test))
    execute(tmp_path, '-c', text)
    meta = torch.load(checkpoint, weights_only=True)['meta']
    assert meta['iter'] == 4  # 2 batches, twice each
    assert meta['adversary']['eps'] == 4
    report = json.loads((tmp_path / 'run' / 'robustness.json').read_text())
    assert report['complete'] is True
    assert report['checkpoint'] == str(checkpoint)
    assert report['adversary'] == meta['adversary']
    text = (tmp_path / 'run' / 'robustness.md').read_text()
    assert 'The model was trained with FreeAdversary: norm linf, eps 4' in text
    (fgsm,) = report['attacks']
    assert (fgsm['name'], fgsm['eps'], fgsm['num_steps']) == ('fgsm', 8, 1)
    assert (tmp_path / 'run' / 'robustness.md').is_file()
    (shown,) = (tmp_path / 'run').rglob('shown')
    assert len(list(shown.glob('*.png'))) == 3  # mmdet's, of the benign pass
    pictures = sorted(path.name for path in (shown / 'attacks').iterdir())
    assert pictures == [f'attack_fgsm_{number}.png' for number in range(10, 13)]
    for name in ('p.pkl', 'p.fgsm.pkl'):
        assert len(pickle.loads((tmp_path / name).read_bytes())) == 3


FOREIGN = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)
train_cfg = dict(type='mmrobust.AdvEpochBasedTrainLoop', max_epochs=1,
                 adversary=dict(type='mmrobust.FreeAdversary', eps=4, replays=2))
test_cfg = dict(type='mmrobust.AttackTestLoop', check_images=0, gallery=0,
                attacks=dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=1)))

# What follows makes the project small, as somebody's own data would make it other.
model = dict(
    backbone=dict(base_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
small = dict(data_root='ROOT/', ann_file='annotations.json', pipeline=pipeline,
             data_prefix=dict(img='images/'), metainfo=dict(classes=CLASSES))
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    **{**small, 'pipeline': pipeline[:1] + pipeline[2:3] + pipeline[1:2] + [
        dict(type='PackDetInputs')]}))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=small)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='ROOT/annotations.json')
test_evaluator = val_evaluator
"""


def test_a_foreign_project_with_mmdets_own_tools(coco, tmp_path):
    """A stock config plus three settings; nothing of this repository but the import."""
    config = tmp_path / 'theirs.py'
    text = FOREIGN.replace('ROOT', str(coco)).replace('CLASSES', repr(tiny.CLASSES))
    config.write_text(text)
    done = execute(
        tmp_path,
        *(str(MMDET_TOOLS / 'train.py'), str(config), '--work-dir', 'run'),
        '--auto-scale-lr',
    )
    # A batch of two where 0.01 is for sixteen, however often each is used.
    assert 'Scaling the original LR by 0.125' in done.stdout + done.stderr
    (group,) = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)[
        'optimizer'
    ]['param_groups']
    assert group['initial_lr'] == pytest.approx(0.01 * 0.125)
    checkpoint = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)
    assert checkpoint['meta']['adversary']['replays'] == 2
    assert checkpoint['meta']['iter'] == 6
    assert 'Adversarial training:' in done.stdout + done.stderr
    execute(
        tmp_path,
        *('-m', 'mmrobust', str(MMDET_TOOLS / 'test.py'), str(config)),
        *('run/epoch_1.pth', '--work-dir', 'run'),
    )
    report = json.loads((tmp_path / 'run' / 'robustness.json').read_text())
    assert report['complete'] is True
    assert [attack['name'] for attack in report['attacks']] == ['pgd']
