"""Every config parses, builds what it names, and says what its comments say."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mmdet.registry import DATASETS, HOOKS, MODELS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import LOOPS, OPTIMIZERS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from mmrobust.batch import gt_frame_of
from mmrobust.engine import (
    AdvEpochBasedTrainLoop,
    AttackTestLoop,
    FreeAdversary,
    PGDAdversary,
)
from mmrobust.registry import ADVERSARIES, ATTACKS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
WHOLE = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
PARTS = sorted(CONFIGS.rglob('_base_/**/*.py'))
ROBUST_FCOS = CONFIGS / 'robust_fcos_convnext.py'


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.fixture(autouse=True)
def _one_thread(_quiet_and_repeatable: None) -> None:
    """Threads wait for each other longer than these tiny detectors compute."""
    torch.set_num_threads(1)


def walk(node: Any) -> Iterator[ConfigDict]:
    """All dicts of a config, at any depth."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for inner in node:
            yield from walk(inner)


def without_downloads(cfg: Config) -> Config:
    for node in walk(cfg.model):
        node.pop('init_cfg', None)
    return cfg


def test_there_are_configs() -> None:
    """The parametrized tests below would pass on an empty folder."""
    assert ROBUST_FCOS in WHOLE
    assert len(WHOLE) >= 3
    assert len(PARTS) >= 3


def test_the_readme_names_them_all() -> None:
    text = (CONFIGS / 'README.md').read_text()
    for path in WHOLE + PARTS:
        assert f'`{name_of(path)}`' in text, name_of(path)


@pytest.mark.parametrize('path', WHOLE, ids=name_of)
def test_a_config_builds(path: Path) -> None:
    cfg = without_downloads(Config.fromfile(path))
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
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope', 'mmdet'))

    def exists(registry: Any, node: ConfigDict) -> None:
        kind = node['type']
        with registry.switch_scope_and_registry(node.get('_scope_')) as scoped:
            assert scoped.get(kind) is not None, kind

    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        exists(DATASETS, cfg[key].dataset)
        for transform in cfg[key].dataset.pipeline:
            exists(TRANSFORMS, transform)
    hooks = list(cfg.get('default_hooks', {}).values()) + cfg.get('custom_hooks', [])
    for hook in hooks:
        exists(HOOKS, hook)
    for scheduler in cfg.param_scheduler:
        exists(PARAM_SCHEDULERS, scheduler)
    exists(OPTIMIZERS, cfg.optim_wrapper.optimizer)


@pytest.mark.parametrize('path', WHOLE, ids=name_of)
def test_no_setting_goes_unread(path: Path) -> None:
    """Runner takes what it knows from a config and ignores the rest in silence."""
    known = set(inspect.signature(Runner.__init__).parameters)
    known |= {
        'find_unused_parameters',  # read by Runner.wrap_model
        'auto_scale_lr',
        # Variables that other settings are made of.
        *('custom_imports', 'dataset_type', 'data_root', 'backend_args'),
        *(
            'train_pipeline',
            'test_pipeline',
            'adversary',
            'attacks',
            'num_updates',
            'vis_backends',
        ),
    }
    assert set(Config.fromfile(path)) <= known


@pytest.mark.parametrize('path', PARTS, ids=name_of)
def test_a_part_builds(path: Path) -> None:
    cfg = Config.fromfile(path)
    if path.parent.name == 'adversaries':
        assert set(cfg) == {'adversary'}
        assert ADVERSARIES.build(cfg.adversary).describe()['eps'] == 4
    else:
        assert path.parent.name == 'attacks'
        assert set(cfg) == {'attacks'}
        for attack in cfg.attacks.values():
            assert ATTACKS.build(attack).describe()['eps'] == 4


def test_the_parts_are_those_of_the_paper() -> None:
    """linf radius 4; FreeAT with 4 replays of step 4; attacks of 10 steps of 1."""
    adversaries = CONFIGS / '_base_' / 'adversaries'
    free = ADVERSARIES.build(Config.fromfile(adversaries / 'free_linf4.py').adversary)
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
    pgd = ADVERSARIES.build(Config.fromfile(adversaries / 'pgd_linf4.py').adversary)
    assert isinstance(pgd, PGDAdversary)
    assert (pgd.describe()['num_steps'], pgd.describe()['random_start']) == (3, True)
    attacks = Config.fromfile(CONFIGS / '_base_' / 'attacks' / 'linf4.py').attacks
    assert list(attacks) == ['noise', 'pgd', 'cls', 'reg', 'cwa']
    for name in ('pgd', 'cls', 'reg', 'cwa'):
        found = ATTACKS.build(attacks[name]).describe()
        settings = ('norm', 'eps', 'step_size', 'num_steps', 'restarts')
        assert [found[key] for key in settings] == ['linf', 4, 1, 10, 1]
        assert found['objective'] == ('total' if name == 'pgd' else name)
        assert found['random_start'] is (name == 'pgd')


# ----------------------------------------------------------- robust_fcos_convnext


def test_robust_fcos_settings() -> None:
    """The published training, key by key; what a base brings has not been lost."""
    cfg = Config.fromfile(ROBUST_FCOS)
    assert cfg.train_cfg.type == 'mmrobust.AdvEpochBasedTrainLoop'
    assert cfg.train_cfg.max_epochs == 6
    free = ADVERSARIES.build(cfg.train_cfg.adversary).describe()
    assert (free['eps'], free['replays'], free['norm']) == (4, 4, 'linf')
    assert cfg.test_cfg.type == 'mmrobust.AttackTestLoop'
    assert list(cfg.test_cfg.attacks) == ['noise', 'pgd', 'cls', 'reg', 'cwa']

    wrapper = cfg.optim_wrapper
    assert wrapper.constructor == 'mmrobust.BackboneLrOptimWrapperConstructor'
    assert wrapper.optimizer.type == 'AdamW'
    assert wrapper.optimizer.lr == 1e-4
    assert wrapper.optimizer.weight_decay == 0.05
    assert wrapper.paramwise_cfg.backbone_lr_mult == 0.1
    assert wrapper.paramwise_cfg.bias_lr_mult == 2.0
    assert wrapper.paramwise_cfg.bias_decay_mult == 0.0
    assert wrapper.clip_grad == dict(max_norm=100, norm_type=2)

    model = cfg.model
    assert model.type == 'FCOS'
    assert model.backbone.type == 'mmpretrain.ConvNeXt'
    assert model.backbone.arch == 'tiny'
    assert model.backbone.frozen_stages == 1
    assert model.backbone.drop_path_rate == 0
    assert model.backbone.init_cfg.type == 'mmrobust.PretrainedBackbone'
    assert 'depth' not in model.backbone  # nothing of the ResNet is left
    assert model.neck.in_channels == [96, 192, 384, 768]
    head = model.bbox_head
    assert head.norm_on_bbox is True
    assert head.centerness_on_reg is True
    assert head.center_sampling is True
    assert head.loss_bbox == dict(type='GIoULoss', loss_weight=1.0)
    # Images come as BGR in 0-255; the backbone was trained on normalised RGB.
    assert model.data_preprocessor.bgr_to_rgb is True
    assert model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert model.data_preprocessor.std == [58.395, 57.12, 57.375]
    # 8 GPUs of 2 images make the published batch of 16.
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.dataset.type == 'CocoDataset'


def test_robust_fcos_schedule() -> None:
    """Warm-up over 500 updates, a decay after 5 of 6 passes; every pass is 4 x long."""
    cfg = Config.fromfile(ROBUST_FCOS)
    batches = 300
    updates = 4 * batches
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=cfg.optim_wrapper.optimizer.lr)
    warmup, decay = (
        PARAM_SCHEDULERS.build(
            scheduler, default_args=dict(optimizer=optimizer, epoch_length=updates)
        )
        for scheduler in cfg.param_scheduler
    )
    assert len(cfg.param_scheduler) == 2
    rates = []
    for epoch in range(cfg.train_cfg.max_epochs):
        for _ in range(updates):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            warmup.step()
        if epoch + 1 < cfg.train_cfg.max_epochs:
            decay.step()
    assert rates[0] == pytest.approx(1e-7)
    assert rates[250] == pytest.approx(1e-4 * (0.001 + 0.999 * 250 / 499))
    assert rates[498] < rates[499] == pytest.approx(1e-4)
    assert rates[499 : 5 * updates] == pytest.approx([1e-4] * (5 * updates - 499))
    assert rates[5 * updates :] == pytest.approx([1e-5] * updates)


def test_robust_fcos_optimizer_groups() -> None:
    """Learning rate and decay of real parameters, by hand."""
    cfg = without_downloads(Config.fromfile(ROBUST_FCOS))
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    conv = 'backbone.stages.2.0.depthwise_conv'
    assert groups[f'{conv}.weight'] == pytest.approx((1e-5, 0.05))
    assert groups[f'{conv}.bias'] == pytest.approx((2e-5, 0.0))
    assert groups['neck.lateral_convs.0.conv.weight'] == pytest.approx((1e-4, 0.05))
    assert groups['bbox_head.conv_cls.bias'] == pytest.approx((2e-4, 0.0))
    # frozen_stages=1: the stem and the first stage do not learn.
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert any(name.startswith('backbone.stages.0.') for name in frozen)
    assert not any(name.startswith('backbone.stages.1.') for name in frozen)
    assert not frozen & set(groups)


def on_tiny_data(cfg: Config, coco: Path, work_dir: Path) -> Config:
    """The config with small images from the tiny dataset, otherwise as it is."""
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
    cfg.model.bbox_head.num_classes = len(tiny.CLASSES)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.parent.name
    cfg.log_level = 'ERROR'
    cfg.visualizer.vis_backends = []
    return cfg


def test_robust_fcos_runs(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trains and tests as it stands, on small images with two steps per attack."""
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    cfg = on_tiny_data(Config.fromfile(ROBUST_FCOS), coco, tmp_path / 'work')
    cfg.train_cfg.max_epochs = 1
    cfg.train_dataloader.dataset.indices = 2
    cfg.param_scheduler[1].milestones = [1]
    for name in ('pgd', 'cls', 'reg', 'cwa'):
        cfg.test_cfg.attacks[name].num_steps = 1
    cfg.test_cfg.num_images = 2
    cfg.default_hooks.checkpoint = None  # 340 MB
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert isinstance(runner.train_loop, AdvEpochBasedTrainLoop)
    assert runner.iter == 4  # one batch of two images, four times
    assert isinstance(runner.test_loop, AttackTestLoop)
    # mmdet's test pipelines resize before they load the boxes.
    assert gt_frame_of(runner.test_dataloader.dataset) == 'original'
    assert runner.test_loop.gt_frame == 'original'
    runner.test()
    report = json.loads((tmp_path / 'work' / 'robustness.json').read_text())
    names = [attack['name'] for attack in report['attacks']]
    assert names == ['noise', 'pgd', 'cls', 'reg', 'cwa']
    assert report['complete'] is True
    assert report['checks'] == []  # cwa found its training set


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
