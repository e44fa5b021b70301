"""configs/pretrain: the published recipes, and that they train."""

import json
import tarfile
from functools import cache

import cv2
import numpy as np
import pytest
import torch
from config_files import CONFIGS as ROOT, parameter_groups, parse, without_memory
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmrobust.registry import ADVERSARIES

FOLDER = ROOT / 'pretrain'
CONFIGS = sorted(path.stem for path in FOLDER.glob('*.py'))
SMALL = ['demo/robust_classifier', 'demo/standard_classifier', 'transfer/digits']
HEAVY = [c for c in CONFIGS if 'resnet' not in c and 'finetune' not in c]

# Epochs of adversarial training and parameters, arXiv 2303.01870 and its code.
PUBLISHED = {
    'robust_convnext-isotropic-convstem': (300, 23_035_624),
    'robust_convnext-tiny': (300, 28_589_128),
    'robust_convnext-tiny-convstem': (300, 28_627_432),
    'robust_convnext-small-convstem': (50, 50_261_992),
    'robust_convnext-base': (50, 88_591_464),
    'robust_convnext-base-convstem': (250, 88_753_416),
    'robust_convnext-large-convstem': (100, 198_134_680),
    'robust_vit-small': (300, 22_050_664),
    'robust_vit-small-convstem': (300, 22_777_576),
    'robust_vit-medium-convstem': (50, 39_527_272),
    'robust_vit-base': (50, 86_567_656),
    'robust_vit-base-convstem': (250, 87_147_112),
}


def read(name):
    return parse(name if '/' in name else f'pretrain/{name}')


@cache
def build(name):
    cfg = read(name)
    init_default_scope('mmpretrain')
    if 'data_preprocessor' in cfg:  # as the Runner does it
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with without_memory():
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', [c for c in CONFIGS if 'finetune' not in c] + SMALL)
def test_the_model_scores_its_classes(name):
    cfg = read(name)
    model = build(name)
    side = 32 if 'cifar' in name else 224
    with torch.device('meta'):
        scores = model(torch.zeros(2, 3, side, side), mode='tensor')
    digits = name in SMALL or 'cifar' in name
    assert scores.shape == (2, 10 if digits else 1000)
    if 'adversary' in cfg.train_cfg:
        ADVERSARIES.build(cfg.train_cfg.adversary)


def test_all_published_models_are_there():
    assert set(PUBLISHED) == {c for c in HEAVY if c.startswith('robust')}


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_published_recipe(name):
    cfg = read(name)
    epochs, parameters = PUBLISHED[name]
    assert sum(p.numel() for p in build(name).parameters()) == parameters
    assert cfg.train_cfg.max_epochs == epochs
    # The rate that `--auto-scale-lr` scales belongs to 8 GPUs.
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size


STILL = dict(random_start=False)
THREATS = {
    'robust_convnext-tiny': dict(eps=4, num_steps=2, step_size=8, **STILL),
    'finetune_convnext-base-convstem_linf8': dict(eps=8),
    'finetune_convnext-base-convstem_l2': dict(norm='l2', eps=2 * 255),
    'finetune_convnext-base-convstem_l1': dict(norm='l1', eps=75 * 255),
    'robust_resnet50_linf4': dict(eps=4, num_steps=3, step_size=8 / 3, **STILL),
    'robust_resnet50_l2-3': dict(norm='l2', eps=765, num_steps=3, step_size=510),
}


@pytest.mark.parametrize('name', THREATS)
def test_adversaries_are_those_of_the_papers(name):
    """arXiv 2303.01870 and, for ResNets, arXiv 2007.08489, in pixel units."""
    found = ADVERSARIES.build(read(name).train_cfg.adversary).describe()
    wanted = dict(norm='linf') | THREATS[name]
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize('name', PUBLISHED)
def test_what_decays(name):
    model = build(name)
    decays = {}
    names = {id(p): n for n, p in model.named_parameters()}
    for group in parameter_groups(model, read(name)):
        for parameter in group['params']:
            decays[names[id(parameter)]] = group['weight_decay']
    assert len(decays) == len(names)
    assert {d for n, d in decays.items() if n.endswith('.bias')} == {0}
    small = {d for n, d in decays.items() if model.get_parameter(n).ndim <= 1}
    if 'vit' in name:
        assert small == {0}
        assert decays['backbone.cls_token'] == decays['backbone.pos_embed'] == 0.05
    else:  # norm weights and layer scales too
        assert small == {0, 0.05}
        last = 'backbone.norm0.weight' if 'iso' in name else 'backbone.norm3.weight'
        assert decays[last] == 0.05
    matrices = {
        d
        for n, d in decays.items()
        if n.endswith('.weight') and model.get_parameter(n).ndim > 1
    }
    assert matrices == {0.05}


@pytest.mark.parametrize('name', [c for c in HEAVY if c.startswith('clean')])
def test_the_clean_phase_hands_over_all_weights(name):
    clean, robust = read(name), read(name.replace('clean', 'robust'))
    assert 'adversary' not in clean.train_cfg
    assert clean.train_cfg.max_epochs == 100
    assert robust.load_from == f'work_dirs/{name}/epoch_100.pth'
    ours = build(name).state_dict()
    theirs = build(name.replace('clean', 'robust')).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items()
    }
    init = clean.model.backbone.init_cfg
    assert init.type == 'mmrobust.PretrainedBackbone'
    assert clean.load_from is None


def make_pictures(root, splits, side):
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for label in range(10):
            folder = root / split / f'class{label}'
            folder.mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i:04d}.jpg'), picture)


def narrow(cfg):
    """The same kind of network, small enough for a test."""
    if 'cifar' in cfg.filename:
        cfg.model.backbone.update(base_channels=8, stem_channels=8)
        cfg.model.head.in_channels = 64
    else:
        cfg.model.backbone.arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])
        cfg.model.backbone.pop('init_cfg', None)
        cfg.model.head.in_channels = 16


@pytest.mark.parametrize(
    'name', ['robust_convnext-tiny-convstem', 'robust_resnet18_cifar10']
)
def test_it_trains_validates_and_saves(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', property(str))  # yapf takes long
    cifar = 'cifar' in name
    make_pictures(tmp_path / 'data', dict(train=2, test=1), 32 if cifar else 64)
    cfg = read(name)
    narrow(cfg)
    for key, split in (('train', 'train'), ('val', 'test'), ('test', 'test')):
        loader = cfg[f'{key}_dataloader']
        loader.update(num_workers=0, batch_size=10)
        loader.pop('persistent_workers', None)
        if cifar:
            assert loader.dataset.type == 'CustomDataset'  # its own folder layout
            loader.dataset.data_root = str(tmp_path / 'data')
            for transform in loader.dataset.pipeline:
                if transform.type == 'RandomCrop':
                    assert transform.crop_size == 32
        else:
            loader.dataset = dict(
                type='CustomDataset',
                data_root=str(tmp_path / 'data'),
                data_prefix=split,
                pipeline=loader.dataset.pipeline,
            )
    if cifar:  # pictures here are 32 x 40
        for key in ('val', 'test'):
            pipeline = cfg[f'{key}_dataloader'].dataset.pipeline
            pipeline.insert(1, dict(type='CenterCrop', crop_size=32))
    # As many as make_pictures has.
    cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = 10
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler[0].end = 1
    cfg.param_scheduler = cfg.param_scheduler[:1]
    cfg.load_from = None
    cfg.work_dir = str(tmp_path / 'work')
    cfg.experiment_name = f'pretrain_{name}'
    cfg.log_level = 'WARNING'
    init_default_scope('mmpretrain')
    runner = Runner.from_cfg(cfg)
    runner.train()
    metrics = runner.test()
    assert 0 <= metrics['accuracy/top1'] <= 100
    saved = torch.load(
        tmp_path / 'work' / 'epoch_1.pth', map_location='cpu', weights_only=False
    )
    assert saved['meta']['iter'] == 2
    assert 'adversary' in saved['meta']
    assert ('ema_state_dict' in saved) == (not cifar)
    assert json.dumps(saved['meta'].get('adversary', {}))
    assert all(torch.isfinite(v.float()).all() for v in saved['state_dict'].values())


def into_shards(root):
    """The training pictures of make_pictures, in two tar files."""
    for part in range(2):
        with tarfile.open(root / f'train-{part}.tar', 'w') as tar:
            for label in range(5 * part, 5 * part + 5):
                name = f'class{label}'
                tar.add(root / 'train' / name, name)


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


def test_it_resumes_exactly_from_the_middle_of_an_epoch(tmp_path, monkeypatch):
    """All that the recipe draws and averages, from pictures in shards."""
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    make_pictures(tmp_path, dict(train=1), 48)
    into_shards(tmp_path)
    init_default_scope('mmpretrain')

    def last(work, **settings):
        cfg = read('robust_convnext-tiny-convstem')
        narrow(cfg)
        # As it is switched in a command line.
        cfg.train_dataloader.dataset.type = 'mmrobust.TarShardsDataset'
        cfg.train_dataloader.dataset.data_root = str(tmp_path)
        cfg.train_dataloader.update(batch_size=4, num_workers=0)
        cfg.train_dataloader.persistent_workers = False
        cfg.train_dataloader.dataset.pipeline[1].scale = 64
        cfg.model.backbone.drop_path_rate = 0.5
        for key in ('val', 'test'):
            cfg[f'{key}_dataloader'] = cfg[f'{key}_evaluator'] = None
            cfg[f'{key}_cfg'] = None
        cfg.train_cfg.max_epochs = 2
        for scheduler in cfg.param_scheduler:
            scheduler.update(begin=0, end=2)
        cfg.default_hooks.checkpoint.update(interval=1, by_epoch=False)
        cfg.default_hooks.checkpoint.max_keep_ckpts = -1
        cfg.update(work_dir=str(tmp_path / work), log_level='WARNING', load_from=None)
        cfg.experiment_name = f'pretrain_{work}'
        cfg.randomness = dict(seed=0)
        cfg.update(settings)
        Runner.from_cfg(cfg).train()
        return torch.load(tmp_path / work / 'iter_6.pth', weights_only=True)

    whole = last('whole')
    torch.rand(7)  # a new process has drawn something else
    path = str(tmp_path / 'whole' / 'iter_2.pth')
    resumed = last('resumed', load_from=path, resume=True)
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert same(whole[key], resumed[key]), key
    assert same(whole['mmrobust_training'], resumed['mmrobust_training'])
