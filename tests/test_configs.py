"""Every config parses, builds what it names, and says what its comments say."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
import torch
from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import LOOPS, OPTIMIZERS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from mmrobust.batch import gt_frame_of
from mmrobust.objective.class_weights import count_classes
from mmrobust.cli import merge_options
from mmrobust.training.loops import AdvEpochBasedTrainLoop
from mmrobust.training import FreeAdversary, PGDAdversary
from mmrobust.evaluation.loops import AttackTestLoop
from mmrobust.models import BoundedLoss
from mmrobust.objective import loss_mode
from mmrobust.registry import ADVERSARIES, ATTACKS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
WHOLE = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
PARTS = sorted(CONFIGS.rglob('_base_/**/*.py'))
# Classifiers have tests of their own: test_pretrain_configs, test_transfer.
OF_DETECTORS = [
    path
    for path in WHOLE
    if not {'pretrain', 'transfer'} & {*path.parts} and 'classifier' not in path.stem
]
ROBUST_FCOS = CONFIGS / 'robust_fcos_convnext.py'
DETECTORS = ('faster-rcnn', 'fcos', 'dn-detr')
BACKBONES = ('r50', 'convnext', 'convnext-convstem')
SIX = [f'{d}_{b}' for d in DETECTORS for b in BACKBONES[:2]]


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.fixture(autouse=True)
def _one_thread(_quiet_and_repeatable: None) -> None:
    """Threads wait for each other longer than these tiny detectors compute."""
    torch.set_num_threads(1)


@functools.cache
def _parsed(path: Path) -> Config:
    return Config.fromfile(path)


def parse(config: Path | str) -> Config:
    """A config of its own; by name, like ``'paper/robust_fcos_r50'``."""
    path = config if isinstance(config, Path) else CONFIGS / f'{config}.py'
    return deepcopy(_parsed(path))


def walk(node: Any) -> Iterator[ConfigDict]:
    """All dicts of a config, at any depth."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for inner in node:
            yield from walk(inner)


def differences(one: Any, two: Any, path: str = '') -> set[str]:
    """Dotted paths at which two configs differ; a list is compared as a whole.

    ``_scope_``, which mmengine adds to what a base of mmdet brings, does not count:
    mmdet is the default scope anyway.
    """
    if not (isinstance(one, dict) and isinstance(two, dict)):
        return set() if one == two else {path}
    found: set[str] = set()
    for key in (set(one) | set(two)) - {'_scope_'}:
        inner = f'{path}.{key}' if path else key
        if key in one and key in two:
            found |= differences(one[key], two[key], inner)
        else:
            found.add(inner)
    return found


def settings(cfg: Config) -> dict:
    """What a Runner reads; variables do not count."""
    known = (*inspect.signature(Runner.__init__).parameters, *READ_ELSEWHERE)
    return {key: value for key, value in cfg.items() if key in known}


# By Runner.wrap_model, mmdet's tools, Config itself and `--cfg-options data_root=`.
READ_ELSEWHERE = (
    'find_unused_parameters',
    'auto_scale_lr',
    'custom_imports',
    'data_root',
)


def without_downloads(cfg: Config) -> Config:
    for node in walk(cfg.model):
        node.pop('init_cfg', None)
    return cfg


def test_there_are_configs() -> None:
    """The parametrized tests below would pass on an empty folder."""
    assert ROBUST_FCOS in WHOLE
    assert len(WHOLE) >= 40
    assert len(PARTS) >= 14


def expand(pattern: str) -> list[str]:
    """Names that a shell makes of ``a_{b,c}.py``."""
    found = re.search(r'\{([^{}]*)\}', pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [
        name
        for choice in found[1].split(',')
        for name in expand(before + choice + after)
    ]


def test_the_readme_names_them_all() -> None:
    """By patterns like ``robust_{fcos,dn-detr}_r50.py``, and it names no others."""
    tables = [
        line
        for line in (CONFIGS / 'README.md').read_text().splitlines()
        if line.startswith('| `')
    ]
    named = [
        name
        for line in tables
        for pattern in re.findall(r'`([^`]+\.py)`', line)
        for name in expand(pattern)
    ]
    assert sorted(named) == sorted(name_of(path) for path in WHOLE + PARTS)


@pytest.mark.parametrize('path', OF_DETECTORS, ids=name_of)
def test_a_config_builds(path: Path) -> None:
    cfg = without_downloads(parse(path))
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) > 1e5
    # The optimizer groups exist (and the backbone's multiplier matches something).
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert wrapper.optimizer.param_groups
    # Loops: arguments that fit, an adversary and attacks that build.
    for key in ('train_cfg', 'val_cfg', 'test_cfg'):
        loop = LOOPS.get(cfg[key].type)
        assert loop is not None, cfg[key].type
        arguments = {k: v for k, v in cfg[key].items() if k not in ('type', '_scope_')}
        accepted: set[str] = set()
        for kind in inspect.getmro(loop)[:-1]:
            accepted |= set(inspect.signature(kind.__init__).parameters)
        assert set(arguments) <= accepted
        if 'adversary' in arguments:
            assert ADVERSARIES.build(arguments['adversary']).describe()['eps'] > 0
        for attack in arguments.get('attacks', {}).values():
            assert ATTACKS.build(attack).describe()['eps'] > 0


@pytest.mark.parametrize('path', WHOLE, ids=name_of)
def test_all_types_of_a_config_exist(path: Path) -> None:
    """A wrong name would only show when a long training reaches it."""
    cfg = parse(path)
    init_default_scope(cfg.get('default_scope', 'mmdet'))

    def as_list(node: Any) -> list:
        return node if isinstance(node, list) else [node]

    def exists(registry: Any, node: ConfigDict) -> None:
        kind = node['type']
        with registry.switch_scope_and_registry(node.get('_scope_')) as scoped:
            assert scoped.get(kind) is not None, kind

    def check_dataset(node: ConfigDict) -> int:
        exists(DATASETS, node)
        for transform in node.get('pipeline', []):
            exists(TRANSFORMS, transform)
        inner = node.get('datasets', [])
        inner = [*inner, node.dataset] if 'dataset' in node else inner
        return len(node.get('pipeline', [])) + sum(check_dataset(n) for n in inner)

    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert check_dataset(cfg[key].dataset) > 0
    for key in ('val_evaluator', 'test_evaluator'):
        for metric in as_list(cfg[key]):
            exists(METRICS, metric)
    hooks = list(cfg.get('default_hooks', {}).values()) + cfg.get('custom_hooks', [])
    for hook in hooks:
        exists(HOOKS, hook)
    for scheduler in as_list(cfg.param_scheduler):
        exists(PARAM_SCHEDULERS, scheduler)
    exists(OPTIMIZERS, cfg.optim_wrapper.optimizer)


@pytest.mark.parametrize('path', OF_DETECTORS, ids=name_of)
def test_the_batch_that_the_rate_is_for(path: Path) -> None:
    """What `--auto-scale-lr` needs; the README names the exceptions from 16."""
    cfg = parse(path)
    if 'demo' in path.parts:
        assert 'auto_scale_lr' not in cfg
        return
    batch = 64 if 'ssd' in path.stem else 32 if 'deformable' in path.stem else 16
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=batch)


# -------------------------------------------------------------- variables and parts


@functools.cache
def source(path: Path) -> ast.Module:
    """The syntax of a config, where ``{{_base_.x}}`` reads as ``_base_.x``."""
    return ast.parse(re.sub(r'\{\{\s*(_base_[\w.]+)\s*\}\}', r'\1', path.read_text()))


def bases(path: Path) -> list[str]:
    for node in source(path).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            return [value] if isinstance(value, str) else value
    return []


def own_files(path: Path) -> set[Path]:
    """The config and those in this repository that it derives from."""
    found = {path}
    for base in bases(path):
        if '::' not in base:
            found |= own_files((path.parent / base).resolve())
    return found


def defined(path: Path) -> set[str]:
    """Names that a file assigns."""
    return {
        node.targets[0].id
        for node in source(path).body
        if isinstance(node, ast.Assign) and node.targets[0].id != '_base_'
    }


def used(path: Path) -> set[str]:
    """Names that a file reads, its own and its bases'."""
    names: set[str] = set()
    for node in ast.walk(source(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
    return names


@functools.cache
def mmdet_keys(name: str) -> set[str]:
    return set(get_config(name))


@pytest.mark.parametrize('path', WHOLE, ids=name_of)
def test_no_setting_goes_unread(path: Path) -> None:
    """Runner takes what it knows from a config and ignores the rest in silence."""
    known = set(inspect.signature(Runner.__init__).parameters) | set(READ_ELSEWHERE)
    for file in own_files(path):
        known |= used(file)
        known |= defined(file) if file in PARTS else set()
        for base in bases(file):
            known |= mmdet_keys(base) if '::' in base else set()
    assert set(parse(path)) <= known


def test_no_variable_of_a_part_goes_unread() -> None:
    read = set(inspect.signature(Runner.__init__).parameters) | set(READ_ELSEWHERE)
    for path in WHOLE + PARTS:
        read |= used(path)
    for path in PARTS:
        assert defined(path), name_of(path)
        assert defined(path) <= read, name_of(path)


def test_parts_are_in_use() -> None:
    """Adversaries may be put in place of each other."""
    inherited = set().union(*map(own_files, WHOLE))
    unused = {p for p in PARTS if p.parent.name != 'adversaries'} - inherited
    assert not unused


ADVERSARY_PARTS = [p for p in PARTS if p.parent.name == 'adversaries']


@pytest.mark.parametrize('path', ADVERSARY_PARTS, ids=name_of)
def test_an_adversary_builds(path: Path) -> None:
    cfg = parse(path)
    assert set(cfg) == {'adversary'}
    eps = ADVERSARIES.build(cfg.adversary).describe()['eps']
    assert eps == (0 if path.stem == 'none' else 4)


@pytest.mark.parametrize(
    ('part', 'variable', 'eps', 'step'),
    [('linf4', 'attacks', 4, 1), ('linf8', 'linf8_attacks', 8, 2)],
)
def test_the_attacks_are_those_of_the_paper(
    part: str, variable: str, eps: int, step: int
) -> None:
    """Radius 4 on COCO and 8 on VOC; 10 steps of a quarter of it."""
    cfg = parse(f'_base_/attacks/{part}')
    assert set(cfg) == {variable}
    attacks = cfg[variable]
    assert list(attacks) == ['noise', 'pgd', 'cls', 'reg', 'cwa']
    assert ATTACKS.build(attacks.noise).describe()['eps'] == eps
    for name in ('pgd', 'cls', 'reg', 'cwa'):
        found = ATTACKS.build(attacks[name]).describe()
        keys = ('norm', 'eps', 'step_size', 'num_steps', 'restarts')
        assert [found[key] for key in keys] == ['linf', eps, step, 10, 1]
        assert found['objective'] == ('total' if name == 'pgd' else name)
        assert found['random_start'] is (name == 'pgd')


def test_the_adversaries_are_those_of_the_papers() -> None:
    """linf radius 4; FreeAT with 4 replays of step 4; PGD-AT with 3 steps."""
    free = ADVERSARIES.build(parse('_base_/adversaries/free_linf4').adversary)
    assert isinstance(free, FreeAdversary)
    assert free.describe() == dict(
        type='FreeAdversary',
        norm='linf',
        eps=4,
        objective='total',
        replays=4,
        warmup_iters=0,
        share=1.0,
        class_weighting=None,
        step_size=4,
        carry='epoch',
    )
    pgd = ADVERSARIES.build(parse('_base_/adversaries/pgd_linf4').adversary)
    assert isinstance(pgd, PGDAdversary)
    assert (pgd.describe()['num_steps'], pgd.describe()['random_start']) == (3, True)


# ------------------------------------------------------------- the published settings


@pytest.mark.parametrize('preset', ['', 'paper/'], ids=['default', 'paper'])
@pytest.mark.parametrize('name', SIX)
def test_published_training(name: str, preset: str) -> None:
    """What the two presets have in common, key by key."""
    cfg = parse(f'{preset}robust_{name}')
    detector, backbone = name.split('_')
    assert cfg.train_cfg.type == 'mmrobust.AdvEpochBasedTrainLoop'
    assert cfg.train_cfg.max_epochs == 6
    free = ADVERSARIES.build(cfg.train_cfg.adversary).describe()
    keys = ('type', 'norm', 'eps', 'step_size', 'replays', 'warmup_iters', 'share')
    assert [free[k] for k in keys] == ['FreeAdversary', 'linf', 4, 4, 4, 0, 1]

    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.type == 'AdamW'
    assert optimizer.lr == 1e-4
    assert tuple(optimizer.betas) == (0.9, 0.999)
    assert optimizer.weight_decay == (0.1 if backbone == 'r50' else 0.05)
    norm = 0.1 if detector == 'dn-detr' else 100
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=norm, norm_type=2)

    # 8 GPUs of 2 images make the published batch of 16.
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    data = cfg.train_dataloader.dataset
    assert data.type == 'CocoDataset'
    assert data.ann_file == 'annotations/instances_train2017.json'
    assert data.filter_cfg.filter_empty_gt is True
    steps = {step.type: step for step in data.pipeline}
    assert list(steps) == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'Resize',
        'RandomFlip',
        'PackDetInputs',
    ]
    assert steps['Resize'].scale == (1333, 800)
    assert steps['Resize'].keep_ratio is True
    assert steps['RandomFlip'].prob == 0.5
    assert cfg.test_dataloader.dataset.ann_file == (
        'annotations/instances_val2017.json'
    )
    assert cfg.test_dataloader.batch_size == 1

    # Images come as BGR in 0-255; the backbone was trained on normalised RGB.
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb is True
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    assert preprocessor.pad_size_divisor == 32

    # The last checkpoint counts, and validation does not choose one.
    assert 'save_best' not in cfg.default_hooks.checkpoint
    assert cfg.val_cfg.type == 'ValLoop'
    assert cfg.test_cfg.type == 'mmrobust.AttackTestLoop'


@pytest.mark.parametrize('name', SIX)
def test_published_backbones(name: str) -> None:
    detector, kind = name.split('_')
    cfg = parse(f'robust_{name}')
    backbone = cfg.model.backbone
    assert backbone.frozen_stages == 1
    assert backbone.init_cfg.type == 'mmrobust.PretrainedBackbone'
    assert backbone.init_cfg.checkpoint.startswith('https://')
    levels = [3] if detector == 'dn-detr' else [0, 1, 2, 3]
    assert list(backbone.out_indices) == levels
    if kind == 'r50':
        assert (backbone.type, backbone.depth) == ('ResNet', 50)
        assert backbone.style == 'pytorch'
        assert backbone.norm_eval is True
        # The affine weights learn in Faster R-CNN alone.
        trains = detector == 'faster-rcnn'
        assert backbone.norm_cfg == dict(type='BN', requires_grad=trains)
        channels = [256, 512, 1024, 2048]
    else:
        found = {k: v for k, v in backbone.items() if k != 'init_cfg'}
        assert found == dict(  # and nothing of the ResNet is left
            type='mmpretrain.ConvNeXt',
            arch='tiny',
            out_indices=levels,
            drop_path_rate=0.0,
            layer_scale_init_value=1.0,
            gap_before_final_norm=False,
            frozen_stages=1,
        )
        assert MODELS.get('mmpretrain.ConvNeXt') is not None
        channels = [96, 192, 384, 768]
    assert cfg.model.neck.in_channels == [channels[i] for i in levels]
    # FPN of FCOS starts at the second level, so the first one's norm has no gradient.
    unused = name == 'fcos_convnext'
    assert cfg.get('find_unused_parameters', False) is unused


def test_published_heads() -> None:
    fcos = parse('robust_fcos_r50').model
    for key in ('norm_on_bbox', 'centerness_on_reg', 'center_sampling', 'conv_bias'):
        assert fcos.bbox_head[key] is True
    assert fcos.bbox_head.stacked_convs == 4
    assert fcos.bbox_head.loss_bbox == dict(type='GIoULoss', loss_weight=1.0)
    assert fcos.test_cfg.nms == dict(type='nms', iou_threshold=0.6)
    assert fcos.neck.start_level == 1
    assert fcos.neck.add_extra_convs == 'on_output'

    frcnn = parse('robust_faster-rcnn_r50').model
    sampler = frcnn.train_cfg.rcnn.sampler
    assert (sampler.num, sampler.pos_fraction) == (512, 0.25)
    assert sampler.add_gt_as_proposals is True
    assert frcnn.train_cfg.rpn.sampler.num == 256
    proposals = frcnn.train_cfg.rpn_proposal
    assert (proposals.nms_pre, proposals.max_per_img) == (2000, 1000)
    assert frcnn.roi_head.bbox_head.loss_bbox.type == 'L1Loss'
    boxes = frcnn.test_cfg.rcnn
    assert (boxes.score_thr, boxes.max_per_img) == (0.05, 100)
    assert boxes.nms.iou_threshold == 0.5

    detr = parse('robust_dn-detr_r50').model
    assert (detr.type, detr.num_queries) == ('mmrobust.DNDETR', 300)
    assert (detr.encoder.num_layers, detr.decoder.num_layers) == (6, 6)
    assert detr.encoder.layer_cfg.ffn_cfg.feedforward_channels == 2048
    assert detr.decoder.layer_cfg.ffn_cfg.feedforward_channels == 2048
    dropout = {'dropout', 'attn_drop', 'proj_drop', 'ffn_drop'}
    rates = [v for node in walk(detr) for k, v in node.items() if k in dropout]
    assert rates
    assert not any(rates)
    assert detr.decoder.query_dim == 4
    assert detr.positional_encoding.temperature == 10
    head = detr.bbox_head
    terms = (head.loss_cls, head.loss_bbox, head.loss_iou)
    assert [(t.type, t.loss_weight) for t in terms] == [
        ('FocalLoss', 1),
        ('L1Loss', 5),
        ('GIoULoss', 2),
    ]
    assert [cost.weight for cost in detr.train_cfg.assigner.match_costs] == [2, 5, 2]
    assert detr.dn_cfg == dict(
        label_noise_scale=0.3,
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=False, num_groups=5),
    )


# Learning rate and weight decay of real parameters; None is frozen, '-' does not exist.
# Per row: backbone's convolution, norm and convolution's bias; head's convolution (a
# linear layer in DN-DETR), its bias and a norm's bias.
HIGH, LOW = (1e-4, 0.1), (1e-5, 0.1)
HIGH5, LOW5 = (1e-4, 0.05), (1e-5, 0.05)
GROUPS = {
    'robust_faster-rcnn_r50': (LOW, (1e-5, 0), '-', HIGH, HIGH, '-'),
    'robust_faster-rcnn_convnext': (LOW5, LOW5, LOW5, HIGH5, HIGH5, '-'),
    'robust_fcos_r50': (LOW, None, '-', HIGH, (2e-4, 0), (1e-4, 0)),
    'robust_fcos_convnext': (LOW5, LOW5, (2e-5, 0), HIGH5, (2e-4, 0), HIGH5),
    'robust_dn-detr_r50': ((1e-6, 0.1), None, '-', HIGH, HIGH, (1e-4, 0)),
    'robust_dn-detr_convnext': (*[(1e-6, 0.05)] * 3, HIGH5, HIGH5, HIGH5),
    'robust_faster-rcnn_vit-s-convstem': (
        *(LOW5, (1e-5, 0), (1e-5, 0)),
        *(HIGH5, (1e-4, 0), '-'),
    ),
    'robust_fcos_vit-s-convstem': (
        *(LOW5, (1e-5, 0), (2e-5, 0)),
        *(HIGH5, (2e-4, 0), (1e-4, 0)),
    ),
    # There the rule for the backbone switches all others off inside it.
    'paper/robust_faster-rcnn_r50': (LOW, LOW, '-', HIGH, HIGH, '-'),
    'paper/robust_faster-rcnn_convnext': (LOW5, LOW5, LOW5, HIGH5, HIGH5, '-'),
    'paper/robust_fcos_r50': (LOW, None, '-', HIGH, (2e-4, 0), (1e-4, 0)),
    'paper/robust_fcos_convnext': (LOW5, LOW5, LOW5, HIGH5, (2e-4, 0), HIGH5),
    'paper/robust_dn-detr_r50': ((1e-6, 0.1), None, '-', HIGH, HIGH, (1e-4, 0)),
    'paper/robust_dn-detr_convnext': (*[(1e-6, 0.05)] * 3, HIGH5, HIGH5, HIGH5),
    'paper/robust_panoptic-fpn_r50': (LOW, LOW, '-', HIGH, HIGH, '-'),
    # A DETR's own factor for the backbone, 0.1, and no other rule there, stay.
    'robust_detr_r50': ((1e-6, 0.1), None, '-', HIGH, HIGH, (1e-4, 0)),
    'robust_deformable-detr_convnext': (
        *[(2e-6, 0.05)] * 3,
        *[(2e-4, 0.05)] * 3,
    ),
}
IN_BACKBONE = {
    'r50': ('layer3.0.conv1.weight', 'layer3.0.bn1.weight', 'layer3.0.conv1.bias'),
    'convnext': (
        'stages.2.0.depthwise_conv.weight',
        'stages.2.0.norm.bias',
        'stages.2.0.depthwise_conv.bias',
    ),
    'vit-s-convstem': (
        'layers.5.attn.qkv.weight',
        'layers.5.ln1.weight',
        'layers.5.attn.qkv.bias',
    ),
}
IN_HEAD = {
    'faster-rcnn': ('rpn_head.rpn_conv.weight', 'rpn_head.rpn_conv.bias', '-'),
    'panoptic-fpn': ('rpn_head.rpn_conv.weight', 'rpn_head.rpn_conv.bias', '-'),
    'fcos': (
        'bbox_head.conv_cls.weight',
        'bbox_head.conv_cls.bias',
        'bbox_head.cls_convs.0.gn.bias',
    ),
    'dn-detr': (
        'bbox_head.fc_reg.layers.0.weight',
        'bbox_head.fc_reg.layers.0.bias',
        'encoder.layers.0.norms.0.bias',
    ),
    'detr': (
        'bbox_head.fc_reg.weight',
        'bbox_head.fc_reg.bias',
        'encoder.layers.0.norms.0.bias',
    ),
    'deformable-detr': (
        'bbox_head.cls_branches.0.weight',
        'bbox_head.cls_branches.0.bias',
        'encoder.layers.0.norms.0.bias',
    ),
}


def build(cfg: Config) -> tuple[torch.nn.Module, dict[str, tuple[float, float]]]:
    """The detector in training mode, and each parameter's learning rate and decay."""
    init_default_scope('mmdet')
    model = MODELS.build(without_downloads(cfg).model).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): n for n, p in model.named_parameters()}
    return model, {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
        if p.requires_grad
    }


@pytest.mark.parametrize('name', GROUPS)
def test_optimizer_groups(name: str) -> None:
    model, groups = build(parse(name))
    detector, backbone = name.split('robust_')[1].split('_')
    parameters = dict(model.named_parameters())
    asked = [f'backbone.{part}' for part in IN_BACKBONE[backbone]]
    for key, wanted in zip((*asked, *IN_HEAD[detector]), GROUPS[name], strict=True):
        if wanted == '-':
            assert key not in parameters
        elif wanted is None:
            assert key in parameters
            assert key not in groups, key
        else:
            assert groups[key] == pytest.approx(wanted), key
    # frozen_stages=1: the stem and the first stage do not learn.
    first, second, stem = {
        'r50': ('layer1', 'layer2', 'conv1'),
        'convnext': ('stages.0', 'stages.1', 'downsample_layers.0'),
        'vit-s-convstem': ('layers.1', 'layers.2', 'patch_embed'),
    }[backbone]
    for part, learns in ((stem, False), (first, False), (second, True)):
        inside = [n for n in parameters if n.startswith(f'backbone.{part}.')]
        assert inside
        assert any(n in groups for n in inside) is learns, part
    if backbone == 'r50':  # BatchNorm's statistics never move
        norms = [m for m in model.backbone.modules() if hasattr(m, 'running_mean')]
        assert norms
        assert not any(norm.training for norm in norms)
    # Bounded losses bound in training and never in an attack.
    bounded = [m for m in model.modules() if isinstance(m, BoundedLoss)]
    one = detector == 'fcos'
    expected = 0 if 'paper' not in name or 'detr' in name else 1 if one else 2
    assert len(bounded) == expected
    assert all(loss.training and loss.bound == 6 for loss in bounded)
    rows = {'fcos': ['element'], 'dn-detr': []}.get(detector, ['element', 'row'])
    assert [loss.per for loss in bounded] == (rows if expected else [])
    with loss_mode(model):
        assert not any(loss.training for loss in bounded)


PAPER = [*SIX, 'panoptic-fpn_r50']


@pytest.mark.parametrize('name', PAPER)
def test_the_paper_preset(name: str) -> None:
    """It differs from the default in what its comments name, and in nothing else."""
    default, paper = parse(f'robust_{name}'), parse(f'paper/robust_{name}')
    panoptic = name.startswith('panoptic')
    changed = differences(settings(default), settings(paper))
    assert 'randomness' in changed
    assert paper.randomness.seed == 0
    losses = {path for path in changed if path.startswith('model.')}
    heads = {path.split('.loss_')[0] for path in losses}
    bounded = {'fcos': 'bbox_head', 'dn-detr': None}
    head = bounded.get(name.split('_')[0], 'roi_head.bbox_head')
    assert heads == ({f'model.{head}'} if head else set())
    kinds = {'train_cfg.adversary.carry', 'optim_wrapper.constructor'}
    kinds |= set() if panoptic else {'train_cfg.adversary.objective'}
    others = {
        path
        for path in changed - losses - {'randomness'}
        if not path.startswith(('optim_wrapper.paramwise_cfg.', 'test_cfg.attacks.'))
    }
    assert others == kinds
    assert set(paper.optim_wrapper.paramwise_cfg.custom_keys) == {'backbone'}
    free = ADVERSARIES.build(paper.train_cfg.adversary).describe()
    assert free['objective'] == ('total' if panoptic else 'cls+reg')
    assert free['carry'] == 'run'
    attacks = paper.test_cfg.attacks
    assert list(attacks) == (['cls'] if panoptic else ['cls', 'reg', 'cwa'])
    for key, attack in attacks.items():
        found = ATTACKS.build(attack)
        assert found.keep_best is False
        described = found.describe()
        keys = ('norm', 'eps', 'step_size', 'num_steps', 'restarts', 'random_start')
        assert [described[k] for k in keys] == ['linf', 4, 1, 10, 1, False]
        assert described['objective'] == key


def lr_trace(cfg: Config, batches: int) -> list[float]:
    """The learning rate of every update, for so many batches a pass."""
    updates = cfg.train_cfg.adversary.replays * batches
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(
            scheduler, default_args=dict(optimizer=optimizer, epoch_length=updates)
        )
        for scheduler in cfg.param_scheduler
    ]
    rates = []
    for epoch in range(cfg.train_cfg.max_epochs):
        for _ in range(updates):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        if epoch + 1 < cfg.train_cfg.max_epochs:
            for scheduler in schedulers:
                if scheduler.by_epoch:
                    scheduler.step()
    return rates


@pytest.mark.parametrize(
    'name', ['robust_fcos_convnext', 'paper/robust_faster-rcnn_r50']
)
def test_schedule_with_warm_up(name: str) -> None:
    """Warm-up over 500 updates, a decay after 5 of 6 passes; every pass is 4 x long."""
    rates = lr_trace(parse(name), batches=300)
    updates = 1200
    assert len(rates) == 6 * updates
    assert rates[0] == pytest.approx(1e-7)
    assert rates[250] == pytest.approx(1e-4 * (0.001 + 0.999 * 250 / 499))
    assert rates[498] < rates[499] == pytest.approx(1e-4)
    assert rates[499 : 5 * updates] == pytest.approx([1e-4] * (5 * updates - 499))
    assert rates[5 * updates :] == pytest.approx([1e-5] * updates)


@pytest.mark.parametrize(
    ('name', 'before', 'after', 'lr'),
    [
        ('robust_dn-detr_r50', 5, 1, 1e-4),
        ('paper/robust_dn-detr_convnext', 5, 1, 1e-4),
        ('robust_dino_r50', 5, 1, 1e-4),
        # Half as many passes as the standard detector's, of 4 updates a batch.
        ('robust_detr_r50', 50, 25, 1e-4),
        ('robust_dab-detr_r50', 20, 5, 1e-4),
        ('robust_deformable-detr_convnext', 20, 5, 2e-4),
    ],
)
def test_schedule_without_warm_up(
    name: str, before: int, after: int, lr: float
) -> None:
    rates = lr_trace(parse(name), batches=2)
    wanted = [lr] * (8 * before) + [lr / 10] * (8 * after)
    assert rates == pytest.approx(wanted)


# ------------------------------------------------------------------ VOC and ConvStem


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('detector', DETECTORS)
def test_voc_configs(detector: str, backbone: str) -> None:
    """Data, evaluator, number of classes, and radius 8 with steps of 2: no more."""
    name = f'robust_{detector}_{backbone}'
    coco, voc = parse(name), parse(f'{name}_voc')
    changed = differences(settings(coco), settings(voc))
    head = 'roi_head.bbox_head' if detector == 'faster-rcnn' else 'bbox_head'
    attacks = {'test_cfg.attacks.noise.eps'}
    for attack in ('pgd', 'cls', 'reg', 'cwa'):
        attacks |= {f'test_cfg.attacks.{attack}.{k}' for k in ('eps', 'step_size')}
    wanted = {
        'data_root',
        f'model.{head}.num_classes',
        'train_cfg.adversary.eps',
        *attacks,
    }
    data = ('train_dataloader.dataset.', 'val_dataloader.dataset.')
    data += ('test_dataloader.dataset.', 'val_evaluator.', 'test_evaluator.')
    assert {path for path in changed if not path.startswith(data)} == wanted
    free = ADVERSARIES.build(voc.train_cfg.adversary).describe()
    assert (free['eps'], free['step_size']) == (8, 8)
    assert voc.test_cfg.attacks == parse('_base_/attacks/linf8').linf8_attacks
    found = [n.num_classes for n in walk(voc.model) if 'num_classes' in n]
    assert found == [20]
    for loader in (voc.val_dataloader, voc.test_dataloader):
        assert loader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    years = voc.train_dataloader.dataset.datasets
    assert [year.ann_file for year in years] == [
        f'VOC{year}/ImageSets/Main/trainval.txt' for year in (2007, 2012)
    ]
    metric = dict(type='VOCMetric', metric='mAP', eval_mode='11points')
    # Nothing of COCO is left.
    assert dict(voc.val_evaluator) == dict(voc.test_evaluator) == metric
    METRICS.build(voc.test_evaluator)
    part = parse('_base_/datasets/voc0712')
    for key, loader in (
        ('voc_train', voc.train_dataloader),
        ('voc_val', voc.val_dataloader),
        ('voc_test', voc.test_dataloader),
    ):
        assert part[key].pop('_delete_') is True
        assert loader == part[key], key
    assert voc.val_dataloader == voc.test_dataloader


@pytest.mark.parametrize('detector', DETECTORS)
def test_convstem_configs(detector: str) -> None:
    """Another stem, its weights, and images in [0, 1]: no more."""
    name = f'robust_{detector}_convnext'
    plain, stem = parse(name), parse(f'{name}-convstem')
    assert differences(settings(plain), settings(stem)) == {
        'model.backbone.type',
        'model.backbone.init_cfg.checkpoint',
        'model.data_preprocessor.mean',
        'model.data_preprocessor.std',
    }
    assert stem.model.backbone.type == 'mmrobust.ConvNeXtConvStem'
    init_default_scope('mmdet')
    preprocessor = MODELS.build(stem.model.data_preprocessor)
    image = torch.tensor([0.0, 51.0, 255.0]).reshape(3, 1, 1).expand(3, 32, 32)
    given = dict(inputs=[image], data_samples=None)
    seen = preprocessor(given)['inputs'][0, :, 0, 0]
    assert seen.tolist() == pytest.approx([1.0, 0.2, 0.0])  # RGB


@pytest.mark.parametrize('detector', ['faster-rcnn', 'fcos'])
def test_vit_configs(detector: str) -> None:
    """Another backbone, neck, normalisation and weight decay: no more."""
    plain = parse(f'robust_{detector}_r50')
    vit = parse(f'robust_{detector}_vit-s-convstem')
    changed = differences(settings(plain), settings(vit))
    assert {p for p in changed if not p.startswith('model.backbone.')} == {
        'model.data_preprocessor.mean',
        'model.neck.type',
        'model.neck.in_channels',
        'optim_wrapper.optimizer.weight_decay',
        *(['optim_wrapper.paramwise_cfg.bias_decay_mult'] * (detector != 'fcos')),
    }
    init_default_scope('mmdet')
    preprocessor = MODELS.build(vit.model.data_preprocessor)
    image = torch.tensor([0.0, 255.0, 255.0]).reshape(3, 1, 1).expand(3, 32, 32)
    seen = preprocessor(dict(inputs=[image], data_samples=None))['inputs'][0, :, 0, 0]
    # RGB; the mean of the published file, and ImageNet's deviation.
    expected = [(1 - 0.484952) / 0.229, (1 - 0.456) / 0.224, -0.405989 / 0.225]
    assert seen.tolist() == pytest.approx(expected, rel=1e-5)


def test_ssd_settings() -> None:
    cfg = parse('robust_ssd300_voc')
    assert cfg.model.bbox_head.num_classes == 20
    assert cfg.test_cfg.attacks == parse('_base_/attacks/linf8').linf8_attacks
    free = ADVERSARIES.build(cfg.train_cfg.adversary).describe()
    assert (free['eps'], free['step_size'], free['replays']) == (8, 8, 4)
    # As many updates as 24 passes.
    assert cfg.train_dataloader.dataset.type == 'RepeatDataset'
    assert cfg.train_cfg.max_epochs * free['replays'] == 24


VOC_OBJECT = (
    '<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin>'
    '<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)


def make_voc(root: Path) -> None:
    """One image a split: trainval of 2007 and 2012, test of 2007."""
    for year, split, objects in (
        (2007, 'trainval', [('dog', 5, 5, 60, 70)]),
        (2012, 'trainval', [('dog', 20, 5, 60, 70), ('person', 1, 1, 90, 80)]),
        (2007, 'test', [('car', 5, 5, 60, 70)]),
    ):
        folder = root / f'VOC{year}'
        for part in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (folder / part).mkdir(parents=True, exist_ok=True)
        name = f'{year}_{split}'
        picture = np.full((100, 120, 3), 128, np.uint8)
        cv2.imwrite(str(folder / 'JPEGImages' / f'{name}.jpg'), picture)
        (folder / 'ImageSets/Main' / f'{split}.txt').write_text(f'{name}\n')
        boxes = ''.join(VOC_OBJECT.format(*each) for each in objects)
        size = '<size><width>120</width><height>100</height><depth>3</depth></size>'
        (folder / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation>{size}{boxes}</annotation>'
        )


def test_voc_data(tmp_path: Path) -> None:
    """Both years are read, once, from where `--cfg-options data_root=` says."""
    make_voc(tmp_path / 'VOCdevkit')
    cfg = parse('robust_fcos_r50_voc')
    merge_options(cfg, dict(data_root=str(tmp_path / 'VOCdevkit')))
    train = DATASETS.build(cfg.train_dataloader.dataset)
    test = DATASETS.build(cfg.test_dataloader.dataset)
    assert (len(train), len(test)) == (2, 1)
    classes = train.metainfo['classes']
    assert len(classes) == 20
    counts = count_classes([train], 20)
    assert {classes[i]: n for i, n in enumerate(counts) if n} == dict(dog=2, person=1)
    assert gt_frame_of(test) == 'original'
    sample = test[0]['data_samples']
    assert sample.img_shape == (600, 720)
    # In the original frame; VOC counts from 1.
    assert sample.gt_instances.bboxes.tensor.tolist() == [[4, 4, 59, 69]]


# --------------------------------------------------------------------- whole runs


def on_tiny_data(cfg: Config, coco: Path, work_dir: Path) -> Config:
    """The config with small images from the tiny dataset, otherwise as it is.

    One epoch of one batch of two images, tests of two images, one step an attack.
    """
    without_downloads(cfg)
    annotations = str(coco / 'annotations.json')
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg[key]
        loader.num_workers, loader.persistent_workers = 0, False
        loader.dataset.update(
            data_root=str(coco) + '/',
            ann_file=annotations,
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=tiny.CLASSES),
        )
        for transform in loader.dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (128, 96)
    for key in ('val_evaluator', 'test_evaluator'):
        cfg[key].ann_file = annotations
    for node in walk(cfg.model):
        if node.get('num_classes') == 80:
            node.num_classes = len(tiny.CLASSES)
        # What takes the time.
        if node.get('num') == 512:
            node.num = 32
        if node.get('type') == 'FCNMaskHead':
            node.num_convs = 1
        if node.get('type') == 'ResNet':
            node.base_channels = 16
            cfg.model.neck.in_channels = [c // 4 for c in cfg.model.neck.in_channels]
        if node.get('type') == 'mmrobust.ViTConvStem':
            node.arch = dict(
                embed_dims=96, num_layers=3, num_heads=3, feedforward_channels=192
            )
            cfg.model.neck.in_channels = [96]
        if node.get('num_layers') == 6:
            node.num_layers = 2
        if 'fc_out_channels' in node:
            node.fc_out_channels = 64
        # An untrained FCOS finds nothing, and mmdet gives no metric for that.
        if 'score_thr' in node:
            node.score_thr, node.max_per_img = 0.0, 20
    cfg.train_cfg.max_epochs = 1
    cfg.train_dataloader.dataset.indices = cfg.val_dataloader.dataset.indices = 2
    cfg.param_scheduler[-1].milestones = [1]
    for attack in cfg.test_cfg.attacks.values():
        if 'num_steps' in attack:
            attack.num_steps = 1
    cfg.test_cfg.num_images = 2
    cfg.default_hooks.checkpoint = None  # 340 MB
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.parent.name
    cfg.log_level = 'ERROR'
    cfg.visualizer.vis_backends = []
    return cfg


def train_and_test(cfg: Config) -> dict:
    """The report of a test after a training of one batch."""
    runner = Runner.from_cfg(cfg)
    before = {n: w.detach().clone() for n, w in runner.model.named_parameters()}
    runner.train()
    assert isinstance(runner.train_loop, AdvEpochBasedTrainLoop)
    assert runner.iter == 4  # one batch of two images, four times
    moved = {
        name
        for name, weight in runner.model.named_parameters()
        if not torch.equal(weight.detach(), before[name])
    }
    assert any(name.startswith('backbone.') for name in moved)
    assert any('head' in name for name in moved)
    assert isinstance(runner.test_loop, AttackTestLoop)
    # mmdet's test pipelines resize before they load the boxes.
    assert gt_frame_of(runner.test_dataloader.dataset) == 'original'
    assert runner.test_loop.gt_frame == 'original'
    runner.test()
    report = json.loads((Path(cfg.work_dir) / 'robustness.json').read_text())
    assert report['complete'] is True
    assert report['checks'] == []  # cwa found its training set
    names = [attack['name'] for attack in report['attacks']]
    assert names == list(cfg.test_cfg.attacks)
    # A detector after two updates may gain from an attack or be dead in parts, and
    # the checks say so; the frame of the boxes they must not doubt.
    texts = [text for attack in report['attacks'] for text in attack['checks']]
    assert not [text for text in texts if 'outside' in text]
    return report


@pytest.mark.parametrize(
    'name',
    [
        'robust_fcos_convnext',
        'robust_faster-rcnn_r50',
        'robust_faster-rcnn_vit-s-convstem',
        'robust_fcos_vit-s-convstem',
        'robust_dn-detr_r50',
        'robust_mask-rcnn_r50',
        'paper/robust_fcos_r50',
    ],
)
def test_a_config_runs(
    name: str, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trains and tests as it stands, on small images with one step per attack."""
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    report = train_and_test(on_tiny_data(parse(name), coco, tmp_path / 'work'))
    metrics = {'coco/bbox_mAP'} | ({'coco/segm_mAP'} if 'mask' in name else set())
    for found in (report['benign'], *report['attacks']):
        assert metrics <= set(found['metrics'])
        # Without objects to find, or without a metric's files, mmdet gives -1.
        assert all(0 <= found['metrics'][metric] <= 1 for metric in metrics)


THINGS, STUFF = tiny.CLASSES, ('wall', 'floor')


def make_panoptic(coco: Path, root: Path) -> Path:
    """The tiny dataset with every pixel in a segment: objects before wall and floor."""
    content = json.loads((coco / 'annotations.json').read_text())
    folder = root / 'panoptic'
    folder.mkdir(parents=True)
    annotations = []
    for image in content['images']:
        height, width = image['height'], image['width']
        ids = np.full((height, width), 1, np.int64)
        ids[height // 2 :] = 2
        segments = [dict(id=1, category_id=4), dict(id=2, category_id=5)]
        for obj in content['annotations']:
            if obj['image_id'] == image['id']:
                x, y, w, h = obj['bbox']
                number = 300 + obj['id']  # needs two of the three colours
                ids[y : y + h, x : x + w] = number
                segments.append(dict(id=number, category_id=obj['category_id']))
        for segment in segments:
            ys, xs = np.nonzero(ids == segment['id'])
            x, y = int(xs.min()), int(ys.min())
            box = [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]
            segment.update(bbox=box, area=len(xs), iscrowd=0)
        blue_green_red = np.stack([ids // 65536, ids // 256 % 256, ids % 256], -1)
        name = Path(image['file_name']).name
        cv2.imwrite(str(folder / name), blue_green_red.astype(np.uint8))
        annotations.append(
            dict(image_id=image['id'], file_name=name, segments_info=segments)
        )
    categories = [
        dict(id=i + 1, name=name, isthing=int(name in THINGS))
        for i, name in enumerate(THINGS + STUFF)
    ]
    (root / 'panoptic.json').write_text(
        json.dumps(dict(content, annotations=annotations, categories=categories))
    )
    return root


@METRICS.register_module()
class AgreeingPixels(BaseMetric):
    """Share of pixels whose predicted class is that of the file.

    In place of panoptic quality, which needs the package panopticapi.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            predicted = sample['pred_panoptic_seg']['sem_seg'][0].cpu().numpy()
            assert predicted.shape == tuple(sample['ori_shape'])
            png = str(sample['seg_map_path'])
            ids = cv2.imread(png)[..., ::-1].astype(np.int64) @ [1, 256, 65536]
            truth = np.zeros_like(ids)
            for segment in sample['segments_info']:
                truth[ids == segment['id']] = segment['category']
            self.results.append(((predicted % 1000) == truth).mean())

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(agreeing=float(np.mean(results)))


@pytest.mark.parametrize('preset', ['', 'paper/'], ids=['default', 'paper'])
def test_panoptic_fpn_runs(
    preset: str, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    # All that mmdet's loading takes from a package that is on no package index.
    api = types.ModuleType('panopticapi')
    api.utils = types.SimpleNamespace(
        rgb2id=lambda colours: colours.astype(np.int64) @ [1, 256, 65536]
    )
    monkeypatch.setitem(sys.modules, 'panopticapi', api)
    root = make_panoptic(coco, tmp_path / 'data')
    cfg = parse(f'{preset}robust_panoptic-fpn_r50')
    cfg = on_tiny_data(cfg, coco, tmp_path / 'work')
    for key in ('train_dataloader', 'test_dataloader', 'val_dataloader'):
        dataset = cfg[key].dataset
        dataset.update(
            ann_file=str(root / 'panoptic.json'),
            data_prefix=dict(img='images/', seg=str(root / 'panoptic')),
            metainfo=dict(
                classes=THINGS + STUFF, thing_classes=THINGS, stuff_classes=STUFF
            ),
        )
        if dataset.get('test_mode'):
            pack = dataset.pipeline[-1]
            pack.meta_keys += ('seg_map_path', 'segments_info')
    for node in walk(cfg.model):
        if 'num_things_classes' in node:
            node.update(num_things_classes=3, num_stuff_classes=2)
    cfg.val_evaluator = cfg.test_evaluator = dict(type='AgreeingPixels')
    report = train_and_test(cfg)
    for found in (report['benign'], *report['attacks']):
        assert 0 <= found['metrics']['agreeing'] <= 1


def test_a_child_config_stays_adversarial(tmp_path: Path) -> None:
    """Own hooks and another length leave the adversary where it is."""
    child = tmp_path / 'child.py'
    child.write_text(
        f'_base_ = {str(ROBUST_FCOS)!r}\n'
        "custom_hooks = [dict(type='EMAHook')]\n"
        'train_cfg = dict(max_epochs=9, val_interval=3)\n'
        'optim_wrapper = dict(optimizer=dict(lr=2e-4))\n'
    )
    cfg = Config.fromfile(child)
    assert cfg.train_cfg.type == 'mmrobust.AdvEpochBasedTrainLoop'
    assert cfg.train_cfg.adversary.eps == 4
    assert cfg.train_cfg.max_epochs == 9
    assert cfg.optim_wrapper.constructor.startswith('mmrobust.')
    assert cfg.optim_wrapper.paramwise_cfg.backbone_lr_mult == 0.1


# ----------------------------------------------------------------------- the demo


def test_the_demo_compares_like_with_like() -> None:
    """The two detectors differ in the training loop and the adversary alone."""
    standard = Config.fromfile(CONFIGS / 'demo' / 'standard_fcos.py')
    robust = Config.fromfile(CONFIGS / 'demo' / 'robust_fcos.py')
    different = {
        key
        for key in set(standard) | set(robust)
        if standard.get(key) != robust.get(key)
    }
    assert different == {'train_cfg'}
    assert standard.train_cfg.type == 'IterBasedTrainLoop'
    assert robust.train_cfg.type == 'mmrobust.AdvIterBasedTrainLoop'
    assert standard.train_cfg.max_iters == robust.train_cfg.max_iters > 0
    adversary = ADVERSARIES.build(robust.train_cfg.adversary)
    assert isinstance(adversary, FreeAdversary)
    assert (adversary.eps, adversary.replays) == (8, 4)
    assert adversary.warmup_iters <= 0.8 * robust.train_cfg.max_iters
    # The last validation falls on the last update, and so does the schedule's end.
    assert standard.param_scheduler[-1]['end'] == standard.train_cfg.max_iters
