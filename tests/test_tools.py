"""tools/train.py and tools/test.py: flags, mistakes, and whole runs as a user's."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmdet
import mmengine.device
import pytest
import tiny
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation import CocoMetric
from mmdet.models.detectors.base import BaseDetector
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmrobust.attacks import ATTACK_NAMES, OPTIONS
from mmrobust.evaluation.attacker import Attacker

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'

Call = Callable[..., str]


@pytest.fixture(autouse=True)
def _one_thread(_quiet_and_repeatable: None) -> None:
    """Threads wait for each other longer than these tiny detectors compute."""
    torch.set_num_threads(1)


@pytest.fixture(scope='module')
def project(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and checkpoints of its model and of others."""
    folder = tmp_path_factory.mktemp('project')
    init_default_scope('mmdet')
    cfg = tiny.runner_config(coco, folder / 'unused', tiny.fcos())
    del cfg['work_dir']
    cfg['data_root'] = str(coco) + '/'
    cfg['custom_imports'] = dict(imports=['mmrobust'], allow_failed_imports=False)
    cfg['train_cfg'] = dict(
        type='mmrobust.AdvEpochBasedTrainLoop',
        max_epochs=1,
        val_interval=100,
        adversary=dict(type='mmrobust.FreeAdversary', eps=4, replays=2),
    )
    cfg['optim_wrapper'] = dict(
        type='OptimWrapper',
        constructor='mmrobust.BackboneLrOptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
        paramwise_cfg=dict(backbone_lr_mult=0.1),
    )
    cfg['visualizer'] = dict(
        type='DetLocalVisualizer',
        vis_backends=[dict(type='LocalVisBackend')],
        name='visualizer',
    )
    Config(cfg).dump(folder / 'config.py')
    wider = tiny.fcos()
    wider['bbox_head']['num_classes'] = 7
    models = {'good': tiny.fcos(), 'wider': wider, 'other': tiny.faster_rcnn()}
    for name, model in models.items():
        torch.manual_seed(0)
        weights = MODELS.build(ConfigDict(model)).state_dict()
        meta = dict(epoch=0, iter=0)
        torch.save(dict(state_dict=weights, meta=meta), folder / f'{name}.pth')
    whole = (folder / 'good.pth').read_bytes()
    (folder / 'truncated.pth').write_bytes(whole[: len(whole) // 2])
    (folder / 'text.pth').write_text('no checkpoint')
    (folder / 'file').write_text('')
    return folder


@pytest.fixture
def call(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Call:
    """Runs a tool in this process; returns the one sentence that it ends with."""
    forwards: list[str] = []
    monkeypatch.setattr(
        BaseDetector, 'forward', lambda *args, **kwargs: forwards.append('forward')
    )
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)

    def run(tool: str, *arguments: str) -> str:
        if '--work-dir' not in arguments:
            arguments = (*arguments, '--work-dir', str(tmp_path / 'work'))
        monkeypatch.setattr(sys, 'argv', [tool, *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith('error: ')
        assert err.count('\n') == 1
        assert err.endswith(('.\n', '?\n'))
        assert not forwards, 'something was computed'
        return err.removeprefix('error: ').strip()

    return run


# ---------------------------------------------------------------------- the flags


def parser_of(script: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a script builds, caught before it reads anything."""
    caught: list[argparse.ArgumentParser] = []

    class Caught(Exception):
        pass

    def parse_args(self: argparse.ArgumentParser, *args: Any) -> None:
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
def test_all_of_mmdets_flags_are_there(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_help_describes_every_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own text, and with the options that it has."""
    text = ' '.join(parser_of(TOOLS / 'test.py', monkeypatch).format_help().split())
    for name in ATTACK_NAMES:
        assert re.search(rf' {name} [\w ,]+: ', text.split('their search')[1]), name
    for option in OPTIONS:
        assert f'--{option.replace("_", "-")}' in text


# ------------------------------------------------------------- mistakes in testing

PGD = ('--attack', 'pgd')


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (('--attack', 'pdg'), "attack 'pdg' is unknown: choose from noise, fgsm, pgd"),
        ((*PGD, '--norm', 'l3'), "norm='l3' is unknown: choose one of linf, l2, l1"),
        ((*PGD, '--eps', '-4'), "eps='-4' is negative or not finite"),
        ((*PGD, '--eps', 'nan'), "eps='nan' is negative or not finite"),
        ((*PGD, '--eps', 'inf'), "eps='inf' is negative or not finite"),
        ((*PGD, '--eps', 'four'), "eps='four' is not a size"),
        ((*PGD, '--eps', '4/0'), "eps='4/0' is not a size"),
        ((*PGD, '--eps', '0.016'), "eps='0.016' is below 1 pixel unit"),
        ((*PGD, '--eps', '0.016'), 'write eps=4.08 if that was meant'),
        ((*PGD, '--step-size', '-1'), "step_size='-1' is negative"),
        ((*PGD, '--step-size', '0'), 'would hardly move'),
        ((*PGD, '--step-size', '0.004'), 'would hardly move'),
        ((*PGD, '--num-steps', '0'), 'num_steps=0 must be a whole number'),
        ((*PGD, '--restarts', '0'), 'restarts=0 must be a whole number'),
        ((*PGD, '--norm', 'l2'), 'the l2 norm needs a radius: give eps'),
        ((*PGD, '--tta'), '--tta and attacks exclude each other'),
        (('--attack', 'pgd', 'cls', 'pgd'), 'names one attack twice'),
        (('--eps', '4'), '--eps needs --attack'),
        (('--step-size', '1'), '--step-size needs --attack'),
        (('--num-steps', '5'), '--num-steps needs --attack'),
        (('--num-images', '2'), '--num-images needs --attack'),
        (('--save-adv', 'x'), '--save-adv needs --attack'),
        ((*PGD, '--version', 'fast'), '--version is no setting of pgd'),
        (('--version', 'fast'), '--version needs --attack'),
        (('--attack', 'ensemble', '--version', 'slow'), "version 'slow' of the ens"),
        (('--attack', 'ensemble', '--num-steps', '5'), '--num-steps is no setting of'),
        (('--attack', 'ensemble', '--step-size', '1'), '--step-size is no setting of'),
        ((*PGD, '--eps', '2', '4', '2'), '--eps 2 4 2 names one value twice'),
        ((*PGD, '--eps', '4', '4/255'), '--eps 4 4/255 names one value twice'),
        ((*PGD, '--num-steps', '5', '5'), '--num-steps 5 5 names one value twice'),
        ((*PGD, '--norm', 'linf', 'l2'), 'only autoattack takes several'),
        ((*PGD, '--check-images', '-1'), 'check_images=-1 must be a whole number of'),
        (('--space', 'original'), '--space needs --attack'),
        (('--quantize',), '--quantize needs --attack'),
        (('--check-images', '2'), '--check-images needs --attack'),
        (('--channels-last',), '--channels-last needs --attack'),
        (('--attack', 'autoattack', '--compile'), '--compile is no setting of auto'),
        (
            (*PGD, '--cfg-options', 'test_cfg.speed.autocast=float16'),
            "speed.autocast='float16' is unknown",
        ),
        (('--attack', 'autoattack', '--quantize'), '--quantize is no setting of auto'),
        (('--attack', 'autoattack', '--space', 'input'), '--space is no setting of'),
        (('--attack', 'pgd', 'autoattack'), 'cannot be combined with other attacks'),
        (
            (
                *(*PGD, '--quantize', '--cfg-options'),
                'test_dataloader.dataset.pipeline.1.backend=pillow',
            ),
            "'bilinear' of 'pillow'",
        ),
        (
            (
                *('--quantize', '--cfg-options'),
                'test_cfg.type=mmrobust.AutoAttackTestLoop',
            ),
            '--quantize is no setting of autoattack',
        ),
        ((*PGD, '--num-images', '0'), 'num_images=0 must be a whole number'),
        ((*PGD, '--num-images', '7'), 'num_images=7 is more than the 6 images'),
        (('--out', 'predictions.json'), 'must be a .pkl file'),
        (('--work-dir', 'FILE/below'), 'cannot be written'),
        ((*PGD, '--report', 'FILE/x.json'), 'folder of --report'),
        ((*PGD, '--save-adv', 'FILE/x'), 'folder of --save-adv'),
        (('--out', 'FILE/x.pkl'), 'folder of --out'),
        (
            ('--cfg-options', 'test_dataloader.dataset.ann_file=gone.json'),
            'gone.json does not exist: check the path, or data_root',
        ),
        (('--cfg-options', 'data_root=/nowhere'), '/nowhere/annotations.json does not'),
        (('--cfg-options', 'model.type=FCOSS'), 'FCOSS is not in the'),
        (
            ('--cfg-options', 'model.bbox_head.loss_cls.type=FocalLos'),
            'FocalLos is not in the',
        ),
        (
            ('--cfg-options', 'test_cfg.type=mmrobust.AttackLoop'),
            'mmrobust.AttackLoop is not in the',
        ),
        (
            (*PGD, '--cfg-options', "test_dataloader.dataset.metainfo.classes=('x',)"),
            'has 6 images and no box at all',
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    call: Call, project: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    """With exit status 2, and before anything is computed."""
    arguments = tuple(a.replace('FILE', str(project / 'file')) for a in arguments)
    config, checkpoint = str(project / 'config.py'), str(project / 'good.pth')
    assert sentence in call('test.py', config, checkpoint, *arguments)


def test_unknown_attacks_list_the_known_ones(call: Call, project: Path) -> None:
    config, checkpoint = str(project / 'config.py'), str(project / 'good.pth')
    text = call('test.py', config, checkpoint, '--attack', 'x')
    assert 'noise, fgsm, pgd, cls, reg, cwa' in text


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('gone.pth', 'does not exist: check the path'),
        ('truncated.pth', 'cannot be read and is probably damaged or incomplete'),
        ('text.pth', 'is no readable torch file|is probably damaged'),
        ('wider.pth', r'does not fit FCOS: 2 of .* \(bbox_head.conv_cls.weight'),
        ('other.pth', 'does not fit FCOS: .* is it the checkpoint of this config'),
        ('pickle.pth', 'holds pickled code .* not run for files of unknown origin'),
        ('list.pth', 'holds a list'),
    ],
)
@pytest.mark.parametrize('attack', [(), PGD])
def test_a_wrong_checkpoint_is_one_sentence(
    call: Call, project: Path, name: str, sentence: str, attack: tuple[str, ...]
) -> None:
    """mmengine loads what fits: a half random detector looks like a good attack."""
    if name == 'pickle.pth':
        torch.save(argparse.Namespace(x=1), project / name)
    elif name == 'list.pth':
        torch.save([torch.zeros(1)], project / name)
    text = call('test.py', str(project / 'config.py'), str(project / name), *attack)
    assert name in text
    assert re.search(sentence, text)


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (None, 'does not exist: check the path'),
        ('model = dict(type=\n', 'cannot be read'),
        ('x = 1\n', 'has no model'),
        (
            "model = dict(type='FCOS')\n",
            'has no (train|test)_dataloader to (train|test)',
        ),
    ],
)
def test_a_wrong_config_is_one_sentence(
    call: Call, project: Path, tmp_path: Path, tool: str, text: Any, sentence: str
) -> None:
    path = tmp_path / 'mine.py'
    if text is not None:
        path.write_text(text)
    arguments = [str(path)]
    if tool == 'test.py':
        arguments.append(str(project / 'good.pth'))
    message = call(tool, *arguments)
    assert 'mine.py' in message
    assert re.search(sentence, message)


# ------------------------------------------------------------ mistakes in training


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (
            ('--cfg-options', 'optim_wrapper.accumulative_counts=2'),
            'accumulative_counts=2 would accumulate one batch with itself',
        ),
        (
            ('--cfg-options', 'optim_wrapper.paramwise_cfg.backbone_key=trunk'),
            'matched no trainable parameter',
        ),
        (
            ('--cfg-options', 'optim_wrapper.paramwise_cfg.backbone_lr_mult=-1'),
            'backbone_lr_mult=-1',
        ),
        (
            ('--cfg-options', 'optim_wrapper.type=AmpOptimWrapper'),
            "needs a GPU, and torch sees none: use optim_wrapper.type='mmrobust.BFl",
        ),
        (
            ('--autocast', '--cfg-options', 'train_cfg._delete_=True'),
            '--autocast is for adversarial training',
        ),
        (('--auto-scale-lr',), '--auto-scale-lr needs auto_scale_lr=dict('),
        (('--resume', 'gone.pth'), "checkpoint 'gone.pth' does not exist"),
        (('--resume', 'TRUNCATED'), 'probably damaged or incomplete'),
        (('--cfg-options', 'load_from=gone.pth'), "'gone.pth' does not exist"),
        (('--cfg-options', 'train_cfg.adversary.eps=-4'), 'eps=-4 is negative'),
        (('--cfg-options', 'train_cfg.adversary.eps=0.016'), 'write eps=4.08'),
        (('--cfg-options', 'train_cfg.adversary.replays=0'), 'replays=0 must be'),
        (('--cfg-options', 'train_cfg.adversary.carry=x'), "carry='x' is unknown"),
        (('--cfg-options', 'train_cfg.adversary.objective=cwa'), "'cwa' is an attack"),
        (
            ('--cfg-options', 'train_cfg.adversary.type=mmrobust.FreeAT'),
            'mmrobust.FreeAT is not in the mmrobust::adversary registry',
        ),
        (
            ('--cfg-options', 'train_cfg.type=mmrobust.EpochLoop'),
            'mmrobust.EpochLoop is not in the',
        ),
        (('--cfg-options', 'data_root=/nowhere'), '/nowhere/annotations.json does not'),
        (
            ('--cfg-options', "train_dataloader.dataset.metainfo.classes=('x',)"),
            'the training has 6 images and no box at all',
        ),
        (
            (
                '--cfg-options',
                'train_dataloader.dataset.filter_cfg.min_size=999',
            ),
            'dataset is empty',
        ),
        (('--work-dir', 'FILE/below'), 'cannot be written'),
    ],
)
def test_a_mistake_in_training_is_one_sentence(
    call: Call,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    arguments = tuple(
        a.replace('FILE', str(project / 'file')).replace(
            'TRUNCATED', str(project / 'truncated.pth')
        )
        for a in arguments
    )
    assert sentence in call('train.py', str(project / 'config.py'), *arguments)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (('--eps', '4'), '--eps needs --robust METHOD'),
        (('--backbone', 'resnet50'), '--backbone needs --robust METHOD'),
        (('--dump', 'x.py'), '--dump needs --robust METHOD'),
        (('--robust', 'fre'), "method 'fre' is unknown"),
        (('--robust', 'free', '--eps', '-1'), "eps='-1' is negative"),
        (('--robust', 'free', '--dump', 'x.yaml'), 'must be a .py file'),
        (('--robust', 'free'), 'the config is adversarial already'),
    ],
)
def test_a_mistake_in_converting_is_one_sentence(
    call: Call, project: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    arguments = tuple(a.replace('FILE', str(project / 'file')) for a in arguments)
    assert sentence in call('train.py', str(project / 'config.py'), *arguments)


# ------------------------------------------------------ what reaches the runner


@pytest.fixture
def config_of(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    """The config that a tool hands to the runner."""

    class Stop(Exception):
        pass

    def from_cfg(cfg: Config) -> None:
        seen.append(cfg)
        raise Stop

    seen: list[Config] = []
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)

    def run(tool: str, *arguments: str, config: Path | None = None) -> Config:
        positional = [str(config or project / 'config.py')]
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


def test_attack_flags_reach_the_loop(config_of: Callable[..., Config]) -> None:
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


def test_several_values_are_curves(config_of: Callable[..., Config]) -> None:
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


def test_a_curve_costs_one_benign_pass(
    config_of: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line to the tables of the report."""
    arguments = ('--eps', '2', '4', '--num-steps', '1', '2', '--num-images', '2')
    cfg = config_of('test.py', *PGD, *arguments)
    predictions: list[int] = []
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    predict = Attacker.predict

    def counted(*args: Any) -> Any:
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


def test_the_configs_loop_keeps_what_the_flags_leave_open(
    config_of: Callable[..., Config], project: Path, tmp_path: Path
) -> None:
    """--attack replaces the attacks, not the frame of the boxes or the seed."""
    config = tmp_path / 'child.py'
    config.write_text(
        f'_base_ = {str(project / "config.py")!r}\n'
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


def test_speed_reaches_the_loops(
    config_of: Callable[..., Config], project: Path, tmp_path: Path
) -> None:
    flags = ('--autocast', '--channels-last', '--compile')
    speed = dict(autocast='bfloat16', channels_last=True, compile=True)
    assert config_of('test.py', *PGD, *flags).test_cfg.speed == speed
    assert 'speed' not in config_of('test.py', *PGD).test_cfg
    assert config_of('train.py', *flags).train_cfg.speed == speed
    assert 'speed' not in config_of('train.py').train_cfg
    # Beside what the config has.
    config = tmp_path / 'child.py'
    config.write_text(
        f'_base_ = {str(project / "config.py")!r}\n'
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


def test_without_attacks_the_test_is_mmdets(config_of: Callable[..., Config]) -> None:
    cfg = config_of('test.py')
    assert cfg.test_cfg == dict(type='TestLoop')
    assert 'attack_visualization' not in cfg.default_hooks


def test_show_dir_shows_benign_and_attacked(config_of: Callable[..., Config]) -> None:
    cfg = config_of('test.py', '--attack', 'fgsm', '--show-dir', 'shown')
    assert cfg.default_hooks.visualization.draw is True
    assert cfg.default_hooks.visualization.test_out_dir == 'shown'
    assert cfg.default_hooks.attack_visualization.out_dir == 'shown'


def test_tta_wraps_the_model(config_of: Callable[..., Config]) -> None:
    cfg = config_of('test.py', '--tta')
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.model.module.type == 'FCOS'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'


def test_a_standard_config_is_made_robust(
    config_of: Callable[..., Config], project: Path, tmp_path: Path
) -> None:
    """--robust first, then --cfg-options, which have the last word."""
    standard = Config.fromfile(project / 'config.py')
    standard.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8)
    del standard['optim_wrapper']['constructor']
    standard.dump(tmp_path / 'standard.py')
    cfg = config_of(
        'train.py',
        *('--robust', 'free', '--eps', '8/255', '--replays', '2', '--schedule', '1'),
        *('--cfg-options', 'optim_wrapper.optimizer.lr=0.5'),
        config=tmp_path / 'standard.py',
    )
    assert cfg.train_cfg.type == 'mmrobust.AdvEpochBasedTrainLoop'
    assert cfg.train_cfg.max_epochs == 4
    assert cfg.train_cfg.adversary.replays == 2
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert list(cfg.test_cfg.attacks) == ['noise', 'pgd']


def test_a_robust_config_is_written(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readable, alone, and nothing else: no work dir, no training."""
    monkeypatch.chdir(tmp_path)
    name = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
    command = ['train.py', name, '--robust', 'pgd', '--num-steps', '2']
    monkeypatch.setattr(sys, 'argv', [*command, '--dump', 'out/mine.py'])
    runpy.run_path(str(TOOLS / 'train.py'), run_name='__main__')
    assert [path.name for path in tmp_path.rglob('*')] == ['out', 'mine.py']
    cfg = Config.fromfile(tmp_path / 'out' / 'mine.py')
    assert cfg.train_cfg.adversary.num_steps == 2
    assert cfg.custom_imports.imports == ['mmrobust']
    assert 'work_dir' not in cfg
    assert 'launcher' not in cfg


def test_resuming(config_of: Callable[..., Config], project: Path) -> None:
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
def test_mixed_precision(
    config_of: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    kind: str,
    settings: dict,
) -> None:
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


def test_scaling_the_learning_rate(config_of: Callable[..., Config]) -> None:
    cfg = config_of(
        'train.py',
        *('--auto-scale-lr', '--cfg-options'),
        *('auto_scale_lr.enable=False', 'auto_scale_lr.base_batch_size=16'),
    )
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)


# ------------------------------------------------------- errors of somebody else


@pytest.mark.parametrize(
    ('owner', 'method'),
    [(FPN, 'forward'), (PackDetInputs, 'transform'), (CocoMetric, 'compute_metrics')],
)
def test_an_error_of_somebody_else_keeps_its_traceback(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    owner: type,
    method: str,
) -> None:
    """Its type, too; lines before it say what was going on."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError('out of luck')

    monkeypatch.setattr(owner, method, fail)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    arguments = [str(project / 'config.py'), str(project / 'good.pth'), *PGD]
    arguments += ['--num-steps', '1', '--work-dir', 'work']
    monkeypatch.setattr(sys, 'argv', ['test.py', *arguments])
    with pytest.raises(ZeroDivisionError, match='out of luck') as caught:
        runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')
    assert caught.traceback[-1].name == 'fail'
    err = capsys.readouterr().err
    assert re.match(r'error while testing:\n(error while .*:\n)*', err), err


# ------------------------------------------------------- as a user runs them


def execute(
    folder: Path, *arguments: str, expect: int = 0
) -> subprocess.CompletedProcess[str]:
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
    assert done.returncode == expect, done.stderr[-3000:]
    return done


def test_train_then_attack(project: Path, tmp_path: Path) -> None:
    """The two commands of the README, one pass of training, pictures included."""
    config = str(project / 'config.py')
    execute(tmp_path, str(TOOLS / 'train.py'), config, '--work-dir', 'run')
    checkpoint = tmp_path / 'run' / 'epoch_1.pth'
    meta = torch.load(checkpoint, weights_only=True)['meta']
    assert meta['iter'] == 6  # 3 batches, twice each
    assert meta['adversary']['eps'] == 4

    execute(
        tmp_path,
        *(str(TOOLS / 'test.py'), config, str(checkpoint), '--work-dir', 'run'),
        *('--attack', 'fgsm', '--eps', '8', '--show-dir', 'shown', '--out', 'p.pkl'),
    )
    report = json.loads((tmp_path / 'run' / 'robustness.json').read_text())
    assert report['complete'] is True
    assert report['checkpoint'] == str(checkpoint)
    (fgsm,) = report['attacks']
    assert (fgsm['name'], fgsm['eps'], fgsm['num_steps']) == ('fgsm', 8, 1)
    assert (tmp_path / 'run' / 'robustness.md').is_file()
    (shown,) = (tmp_path / 'run').rglob('shown')
    assert len(list(shown.glob('*.png'))) == 6  # mmdet's, of the benign pass
    pictures = sorted(path.name for path in (shown / 'attacks').iterdir())
    assert pictures == [f'attack_fgsm_{number}.png' for number in range(10, 16)]
    for name in ('p.pkl', 'p.fgsm.pkl'):
        assert len(pickle.loads((tmp_path / name).read_bytes())) == 6


def test_a_mistake_in_a_process_of_its_own(project: Path, tmp_path: Path) -> None:
    """Nothing but the sentence: no traceback, no half-made work dir for a result."""
    done = execute(
        tmp_path,
        *(str(TOOLS / 'test.py'), str(project / 'config.py'), 'gone.pth'),
        *('--work-dir', 'run', '--attack', 'pgd'),
        expect=2,
    )
    assert done.stderr == (
        "error: checkpoint 'gone.pth' does not exist: check the path.\n"
    )
    assert not list((tmp_path / 'run').iterdir())


FOREIGN = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)
train_cfg = dict(type='mmrobust.AdvEpochBasedTrainLoop', max_epochs=1,
                 adversary=dict(type='mmrobust.FreeAdversary', eps=4, replays=2))
test_cfg = dict(type='mmrobust.AttackTestLoop',
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


def test_a_foreign_project_with_mmdets_own_tools(coco: Path, tmp_path: Path) -> None:
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
