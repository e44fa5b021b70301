"""Mistakes that are found before anything is computed, or that nobody would notice."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mmengine.config import Config
from mmdet.models.detectors.base import BaseDetector
from mmrobust import cli
from mmrobust.batch import check_batch, count_boxes_outside
from mmrobust.weights import check_resumable, read_checkpoint
from mmrobust.errors import ConfigError

FREE = dict(type='mmrobust.FreeAdversary', eps=4, replays=2)
ATTACKS = dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=1))


@pytest.mark.parametrize(
    ('key', 'value', 'sentence'),
    [
        ('model', None, 'model=None of the config must be a dict'),
        ('train_dataloader', [], r'train_dataloader=\[\] of the config must be a dict'),
        ('val_evaluator', 'x', "val_evaluator='x' .* must be a dict or a list"),
        ('custom_hooks', {}, 'custom_hooks={} of the config must be a list'),
        ('resume', 1, 'resume=1 of the config must be True or False'),
        ('load_from', 1, 'load_from=1 of the config must be a text'),
    ],
)
def test_a_section_of_another_kind(key: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        cli.check_sections(Config({'model': {}, key: value}))


def test_sections_may_be_absent_or_none() -> None:
    cli.check_sections(Config({'model': {}, 'val_cfg': None, 'test_evaluator': [{}]}))


def test_a_launcher_that_did_not_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r'RANK in the environment: .* by torchrun'):
        cli.check_launcher('pytorch')
    for name in names:
        monkeypatch.setenv(name, '0')
    cli.check_launcher('pytorch')
    cli.check_launcher('none')


def test_options_that_argparse_and_mmengine_cannot_read() -> None:
    parser = cli.Parser()
    parser.add_argument('--count', type=int)
    parser.add_argument('--cfg-options', nargs='+', action=cli.DictAction)
    with pytest.raises(ConfigError, match=r"--count: invalid int value: 'x'; --help"):
        parser.parse_args(['--count', 'x'])
    for words in (['x'], ['a=1', 'b'], ['a=[1,(2]']):
        with pytest.raises(ConfigError, match=r'--cfg-options .* give KEY=VALUE'):
            parser.parse_args(['--cfg-options', *words])
    read = parser.parse_args(['--cfg-options', 'a=1', 'b.c=[x,y]'])
    assert read == argparse.Namespace(
        count=None, cfg_options={'a': 1, 'b.c': ['x', 'y']}
    )


def test_an_option_for_what_is_not_there() -> None:
    cfg = Config({'model': {'neck': [{}]}})
    with pytest.raises(ConfigError, match=r"cannot set 'model.neck.3.x'"):
        cli.merge_options(cfg, {'model.neck.3.x': 1})


@pytest.mark.parametrize(
    ('batch', 'sentence'),
    [
        ({'img': 1}, 'yields img and not inputs and data_samples'),
        ([], 'yields a list and not'),
    ],
)
def test_a_batch_of_another_pipeline(batch: Any, sentence: str) -> None:
    check_batch({'inputs': [], 'data_samples': []})
    with pytest.raises(ConfigError, match=sentence):
        check_batch(batch)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """A detector of NaN finds nothing, as if the attack were perfect."""
    path = str(tmp_path / 'x.pth')
    state = {'a': torch.zeros(2), 'b': torch.tensor([1.0, math.nan])}
    torch.save({'state_dict': state}, path)
    with pytest.raises(ConfigError, match=r"1 of 2 tensors, 'b' first"):
        read_checkpoint(path)
    state['b'] = torch.tensor([1.0, math.inf])  # masks of attention have it
    torch.save({'state_dict': state}, path)
    read_checkpoint(path)


def test_weights_alone_cannot_be_resumed() -> None:
    check_resumable('x.pth', {'meta': {'epoch': 1, 'iter': 2}})
    for checkpoint in ({}, {'meta': {}}, {'meta': None}, {'meta': {'epoch': 1}}):
        with pytest.raises(ConfigError, match=r'with --cfg-options load_from=x\.pth'):
            check_resumable('x.pth', checkpoint)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('something was computed')

    monkeypatch.setattr(BaseDetector, 'forward', forward)


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        (dict(attacks=3), 'attacks=3 must be a dict'),
        (dict(attacks=dict(pgd=[])), r'pgd=\[\] in attacks must be a dict'),
        (dict(attacks={'a/b': ATTACKS['pgd']}), "'a/b' in attacks is no name"),
        (dict(attacks=ATTACKS, report='x.md'), r"report='x.md' must be a \.json file"),
        (dict(attacks=ATTACKS, report='config.py'), 'must be a .json file'),
    ],
)
def test_an_evaluation_that_cannot_be(
    build_runner: Callable, untouched: None, settings: dict, sentence: str
) -> None:
    runner = build_runner(test_cfg=dict(type='mmrobust.AttackTestLoop', **settings))
    with pytest.raises(ConfigError, match=sentence):
        runner.test()


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        (dict(max_epochs=-2), 'max_epochs=-2 must be a whole number'),
        (dict(max_epochs=1, val_interval='x'), "val_interval='x' must be a whole"),
    ],
)
def test_a_training_that_cannot_be(
    build_runner: Callable, untouched: None, settings: dict, sentence: str
) -> None:
    loop = dict(type='mmrobust.AdvEpochBasedTrainLoop', adversary=FREE, **settings)
    with pytest.raises(ConfigError, match=sentence):
        build_runner(train_cfg=loop).train()


def changed(coco: Path, folder: Path, change: Callable[[dict], None]) -> str:
    content = json.loads((coco / 'annotations.json').read_text())
    change(content)
    path = folder / 'changed.json'
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize('box', [[5, 5, math.inf, 9], [5, 5, 9, 1e300]])
@pytest.mark.parametrize('training', [True, False])
def test_a_box_that_is_none(
    coco: Path,
    tmp_path: Path,
    build_runner: Callable,
    untouched: None,
    box: list,
    training: bool,
) -> None:
    """mmdet takes it, and its losses are NaN."""
    path = changed(
        coco, tmp_path, lambda content: content['annotations'][0].update(bbox=box)
    )
    loader = tiny.loader(coco, test=not training)
    loader['dataset']['ann_file'] = path
    loop = dict(type='mmrobust.AdvEpochBasedTrainLoop', max_epochs=1, adversary=FREE)
    test = dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    if training:
        run = build_runner(train_cfg=loop, train_dataloader=loader).train
    else:
        run = build_runner(test_cfg=test, test_dataloader=loader).test
    with pytest.raises(ConfigError, match=r'000.png has the box .* which is none'):
        run()


def test_a_metric_without_a_class(
    coco: Path, tmp_path: Path, build_runner: Callable, untouched: None
) -> None:
    """mmdet's fails once every image has been predicted, or scores other classes."""
    path = changed(coco, tmp_path, lambda content: content['categories'].pop(1))
    metric = dict(type='CocoMetric', ann_file=path, metric='bbox')
    test = dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    with pytest.raises(ConfigError, match="CocoMetric has no category 'square'"):
        build_runner(test_cfg=test, test_evaluator=metric).test()


def test_images_without_their_shape(build_runner: Callable, untouched: None) -> None:
    runner = build_runner(
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    )
    sample = runner.test_dataloader.dataset[0]['data_samples']
    assert count_boxes_outside([sample]) == 0
    del sample.img_shape
    with pytest.raises(ConfigError, match='meta_keys of PackDetInputs'):
        count_boxes_outside([sample])


def test_a_preprocessor_that_prepares_no_images(
    build_runner: Callable, untouched: None
) -> None:
    runner = build_runner(
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    )
    del runner.model.data_preprocessor
    runner.model.data_preprocessor = None
    with pytest.raises(ConfigError, match='give DetDataPreprocessor'):
        runner.test()
