"""robustify: what it changes, what it keeps, and what it refuses."""

from pathlib import Path

import mmrobust
import pytest
import tiny
from config_files import parameter_groups, parse, without_memory
from mmdet import registry
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmrobust import robustify
from mmrobust.recipe import BACKBONES, summary
from mmrobust.errors import ConfigError
from mmrobust.registry import ADVERSARIES, ATTACKS
from mmrobust.weights.families import vit

FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
FCOS = (
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'
)
DAB_DETR = 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py'
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def same(first, second):
    """Equality of configs, lists and tuples alike."""

    def plain(node):
        if isinstance(node, dict):
            return {k: plain(v) for k, v in node.items() if k != '_scope_'}
        return [plain(v) for v in node] if isinstance(node, (list, tuple)) else node

    return plain(first) == plain(second)


# -------------------------------------------------- against the configs by hand


@pytest.mark.parametrize('backbone', ['resnet50', 'convnext-tiny'])
@pytest.mark.parametrize(
    ('base', 'name'), [(FASTER_RCNN, 'faster-rcnn'), (FCOS, 'fcos')]
)
def test_it_gives_what_the_configs_by_hand_say(base, name, backbone):
    """Model, loop, clipping and attacks, and the optimizer's groups."""
    suffix = {'resnet50': 'r50', 'convnext-tiny': 'convnext'}[backbone]
    by_hand = parse(f'robust_{name}_{suffix}')
    cfg = robustify(base, backbone=backbone)
    assert same(
        cfg.train_cfg, {**by_hand.train_cfg, 'adversary': cfg.train_cfg.adversary}
    )
    assert (
        ADVERSARIES.build(cfg.train_cfg.adversary).describe()
        == ADVERSARIES.build(by_hand.train_cfg.adversary).describe()
    )
    assert {
        n: ATTACKS.build(a).describe() for n, a in cfg.test_cfg.attacks.items()
    } == {n: ATTACKS.build(a).describe() for n, a in by_hand.test_cfg.attacks.items()}
    assert same(cfg.model.neck, by_hand.model.neck)
    for key in ('mean', 'std', 'bgr_to_rgb'):
        assert same(
            cfg.model.data_preprocessor[key], by_hand.model.data_preprocessor[key]
        )
    assert same(cfg.model.backbone.init_cfg, by_hand.model.backbone.init_cfg)
    assert same(cfg.optim_wrapper.clip_grad, by_hand.optim_wrapper.clip_grad)
    assert same(cfg.optim_wrapper.optimizer, by_hand.optim_wrapper.optimizer)
    groups = []
    for one in (cfg, by_hand):
        for node in (one.model, one.model.backbone):
            node.pop('init_cfg', None)
        with without_memory():
            model = MODELS.build(one.model)
        names = {id(p): n for n, p in model.named_parameters()}
        groups.append(
            {
                names[id(p)]: (g['lr'], g['weight_decay'], p.requires_grad)
                for g in parameter_groups(model, one)
                for p in g['params']
            }
        )
    if name == 'faster-rcnn':
        assert groups[0] == groups[1]
    else:
        # In mmdet's own FCOS config BatchNorm's weights do not learn; the rest agrees.
        shared = groups[0].keys() & groups[1].keys()
        assert len(shared) > 100
        assert {n: groups[0][n] for n in shared} == {n: groups[1][n] for n in shared}


def test_what_it_does_not_have_to_change_stays():
    before = Config.fromfile(CONFIGS / 'demo' / 'standard_fcos.py')
    text = before.pretty_text
    cfg = robustify(before, eps=8)
    assert before.pretty_text == text  # the config given is not changed
    changed = {k for k in set(cfg) | set(before) if cfg.get(k) != before.get(k)}
    assert changed == {
        *('train_cfg', 'param_scheduler', 'optim_wrapper', 'test_cfg'),
        'default_hooks',
    } - {k for k in ('default_hooks',) if cfg.default_hooks == before.default_hooks}
    assert cfg.optim_wrapper.optimizer.lr == 2e-3  # an AdamW keeps its learning rate
    assert cfg.optim_wrapper.clip_grad.max_norm == 10
    assert cfg.optim_wrapper.paramwise_cfg.bias_decay_mult == 0
    assert cfg.custom_imports.imports == ['mmrobust']


# ------------------------------------------------------------- schedules


def epochs(cfg):
    return [
        (s['type'], s.get('begin'), s.get('end'), s.get('milestones'), s.get('T_max'))
        for s in cfg.param_scheduler
    ]


def test_schedule_in_passes():
    """Twice the updates: 12 epochs become 2 * 12 / 4 passes of 4 updates per batch."""
    cfg = robustify(FASTER_RCNN)
    assert cfg.train_cfg.max_epochs == 6
    assert epochs(cfg) == [
        ('LinearLR', 0, 500, None, None),
        ('MultiStepLR', 0, 6, [4, 5.5], None),
    ]
    cfg = robustify(FASTER_RCNN, method='pgd')
    assert cfg.train_cfg.max_epochs == 12
    assert epochs(cfg)[1] == ('MultiStepLR', 0, 12, [8, 11], None)
    cfg = robustify(FASTER_RCNN, replays=8, schedule=4)
    assert cfg.train_cfg.max_epochs == 6
    cfg = robustify(DAB_DETR)
    assert cfg.train_cfg.max_epochs == 25
    assert epochs(cfg) == [('MultiStepLR', 0, 25, [20], None)]


def test_schedule_in_updates():
    """Iterations count updates, so twice the updates is twice max_iters."""
    cfg = robustify('mmdet::faster_rcnn/faster-rcnn_r50-caffe_fpn_90k_coco.py')
    assert cfg.train_cfg.type == 'mmrobust.AdvIterBasedTrainLoop'
    assert cfg.train_cfg.max_iters == 180000
    assert epochs(cfg) == [
        ('LinearLR', 0, 500, None, None),
        ('MultiStepLR', 0, 180000, [120000, 160000], None),
    ]
    cfg = robustify('mmdet::faster_rcnn/faster-rcnn_r50-caffe_fpn_90k_coco.py', 'mtd')
    assert cfg.train_cfg.max_iters == 90000


def test_a_warm_up_in_epochs_and_hooks_that_count_them():
    """YOLOX: 5 epochs of warm-up are 1.25 passes of 4 updates."""
    cfg = robustify('mmdet::yolox/yolox_s_8xb8-300e_coco.py')
    assert cfg.train_cfg.max_epochs == 150
    kinds = epochs(cfg)
    assert kinds[0][1:3] == (0, 1.25)
    assert kinds[1][1:3] == (1.25, 142.5)
    assert kinds[2][2] == 150
    (switch,) = [h for h in cfg.custom_hooks if h['type'] == 'YOLOXModeSwitchHook']
    assert switch.num_last_epochs == 7  # mmdet switches one epoch earlier: 16 of 300
    cfg = robustify('mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py')
    assert cfg.train_cfg.dynamic_intervals == [(140, 1)]
    assert epochs(cfg) == [
        ('LinearLR', 0, 1000, None, None),
        ('CosineAnnealingLR', 75, 150, None, None),
    ]
    (switch,) = [h for h in cfg.custom_hooks if h['type'] == 'PipelineSwitchHook']
    assert switch.switch_epoch == 140


# ------------------------------------------------------------- methods and presets


MIXED = 'mixed(0.25 total, 0.25 mislabel, 0.25 dag, 0.25 vanish)'


@pytest.mark.parametrize(
    ('method', 'options', 'expected'),
    [
        ('free', {}, dict(type='FreeAdversary', eps=4, replays=4, step_size=4)),
        ('pgd', {}, dict(type='PGDAdversary', num_steps=3)),
        (
            'pgd',
            dict(num_steps=7, eps=8),
            dict(num_steps=7, eps=8, step_size=8 * 2.5 / 7),
        ),
        ('fast', {}, dict(type='PGDAdversary', num_steps=1, step_size=5)),
        ('mtd', {}, dict(type='MTDAdversary', num_steps=1, step_size=4)),
        ('cwat', {}, dict(type='CWATAdversary', class_weighting='batch')),
        ('mixed', {}, dict(type='PGDAdversary', num_steps=3, objective=MIXED)),
        (
            'pbcat',
            dict(eps=8),
            dict(type='PBCATAdversary', eps=8, step_size=8, replays=8, patch_eps=64),
        ),
        ('none', {}, dict(type='NoAdversary', eps=0)),
        ('free', dict(norm='l2', eps=300), dict(norm='l2', eps=300, step_size=300)),
    ],
)
def test_methods(method, options, expected):
    cfg = robustify(FASTER_RCNN, method, **options)
    described = ADVERSARIES.build(cfg.train_cfg.adversary).describe()
    assert described.items() >= expected.items()
    pgd = ATTACKS.build(cfg.test_cfg.attacks.pgd).describe()
    eps = options.get('eps', 4)
    assert (pgd['eps'], pgd['norm']) == (eps, options.get('norm', 'linf'))
    assert (pgd['step_size'], pgd['num_steps']) == (eps / 4, 10)


@pytest.mark.parametrize(
    ('base', 'name'),
    [(FASTER_RCNN, 'robust_faster-rcnn_r50'), (FCOS, 'robust_fcos_r50')],
)
def test_the_paper_preset_is_that_of_the_configs(base, name):
    by_hand = Config.fromfile(CONFIGS / 'paper' / f'{name}.py')
    cfg = robustify(base, preset='paper', backbone='resnet50')
    assert (
        ADVERSARIES.build(cfg.train_cfg.adversary).describe()
        == ADVERSARIES.build(by_hand.train_cfg.adversary).describe()
    )
    attacks = [c.test_cfg.attacks for c in (cfg, by_hand)]
    built = [{n: ATTACKS.build(a) for n, a in each.items()} for each in attacks]
    assert [[(n, a.keep_best) for n, a in each.items()] for each in built] == [
        [(name, False) for name in ('cls', 'reg', 'cwa')]
    ] * 2
    for name, attack in built[0].items():
        assert attack.describe() == built[1][name].describe()
    for part in ('roi_head', 'bbox_head'):
        head = cfg.model.get(part, {})
        head = head.get('bbox_head', head)
        mine = by_hand.model.get(part, {})
        mine = mine.get('bbox_head', mine)
        for loss in ('loss_cls', 'loss_bbox'):
            assert same(head.get(loss), mine.get(loss))
    rules, expected = (
        cfg.optim_wrapper.paramwise_cfg,
        by_hand.optim_wrapper.paramwise_cfg,
    )
    assert same(rules.custom_keys, expected.custom_keys)
    assert cfg.optim_wrapper.constructor == by_hand.optim_wrapper.constructor


def test_a_detr_keeps_its_tenth_and_gets_another():
    cfg = robustify(DAB_DETR)
    for node in (cfg.model, cfg.model.backbone):
        node.pop('init_cfg', None)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {
        names[id(p)]: g['lr']
        for g in wrapper.optimizer.param_groups
        for p in g['params']
    }
    assert rates['backbone.layer4.0.conv1.weight'] == pytest.approx(1e-6)
    assert rates['bbox_head.fc_cls.weight'] == pytest.approx(1e-4)
    paper = robustify(DAB_DETR, preset='paper').optim_wrapper.paramwise_cfg
    assert paper.custom_keys.backbone.lr_mult == pytest.approx(0.01)


# ------------------------------------------------------------- backbones


@pytest.mark.parametrize(
    ('base', 'backbone', 'out_indices', 'channels'),
    [
        (FASTER_RCNN, 'convnext-tiny-convstem', [0, 1, 2, 3], [96, 192, 384, 768]),
        (FASTER_RCNN, 'resnet18', [0, 1, 2, 3], [64, 128, 256, 512]),
        (DAB_DETR, 'convnext-tiny', [3], [768]),
        (
            'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
            'convnext-tiny',
            [1, 2, 3],
            [192, 384, 768],
        ),
    ],
)
def test_a_swapped_backbone_fits(base, backbone, out_indices, channels):
    cfg = robustify(base, backbone=backbone, backbone_weights='mine.pth')
    assert list(cfg.model.backbone.out_indices) == out_indices
    assert list(cfg.model.neck.in_channels) == channels
    assert cfg.model.backbone.init_cfg.checkpoint == 'mine.pth'
    known = BACKBONES[backbone].normalization
    std = list(known.std)
    assert cfg.model.data_preprocessor.mean == list(known.mean)
    assert cfg.model.data_preprocessor.std == std
    assert cfg.model.data_preprocessor.bgr_to_rgb is True
    if 'convstem' in backbone:
        assert std == [255.0, 255.0, 255.0]


def test_a_backbone_of_one_map_gets_vitdets_pyramid(coco, tmp_path, monkeypatch):
    """From an FPN whose first level is of stride 8."""
    plain = dict(BACKBONES, plain=vit(64, 1, 256, 2))
    monkeypatch.setattr('mmrobust.recipe.backbones.BACKBONES', plain)
    cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    made = robustify(cfg, backbone='plain', backbone_weights='mine.pth')
    assert made.model.neck == dict(
        type='mmrobust.SimpleFeaturePyramid',
        **dict(in_channels=[64], out_channels=16, num_outs=4, start_level=1),
        **dict(add_extra_convs='on_output', relu_before_extra_convs=False),
    )
    assert made.find_unused_parameters
    cfg.model.neck.type = 'PAFPN'
    with pytest.raises(ConfigError, match=r'one map, of which only an FPN.*is PAFPN'):
        robustify(cfg, backbone='plain', backbone_weights='mine.pth')


def test_a_swin_that_loads_weights_of_any_source(coco, tmp_path):
    cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    cfg.model.backbone = ConfigDict(type='SwinTransformer')
    made = robustify(cfg, backbone_weights='mine.pth').model.backbone
    assert made.type == 'mmrobust.SwinTransformer'
    assert made.init_cfg.checkpoint == 'mine.pth'
    assert made.init_cfg.fresh == [r'norm[0-3]\.']


def test_weights_alone():
    cfg = robustify(FASTER_RCNN, backbone_weights='mine.pth')
    assert cfg.model.backbone.type == 'ResNet'
    assert cfg.model.backbone.init_cfg == dict(
        type='mmrobust.PretrainedBackbone', checkpoint='mine.pth'
    )
    assert (
        robustify(FASTER_RCNN, backbone_weights='none').model.backbone.init_cfg is None
    )


# ------------------------------------------------------------- what is said


def test_the_summary_names_what_changed():
    before = get_config('mmdet::yolox/yolox_s_8xb8-300e_coco.py')
    lines = summary(before, robustify(before, eps=2))
    parts = {line.partition(': ')[0]: line for line in lines}
    assert parts.keys() == {
        *('train_cfg', 'test_cfg', 'param_scheduler', 'optim_wrapper', 'custom_hooks'),
        *('default_hooks', 'custom_imports'),
    }
    for part, sentence in {
        'train_cfg': 'EpochBasedTrainLoop(max_epochs=300, val_interval=10) -> '
        'AdvEpochBasedTrainLoop(max_epochs=150, val_interval=5, adversary='
        'FreeAdversary(norm=linf, eps=2, replays=4))',
        'test_cfg': 'AttackTestLoop(attacks=noise pgd cls reg cwa)',
        'param_scheduler': '1.eta_min 0.0005 -> None, 1.begin 5 -> 1.25',
        'optim_wrapper': 'optimizer SGD(lr=0.01, momentum=0.9, weight_decay=0.0005, '
        'nesterov=True) -> AdamW(lr=0.0001, ',
        'custom_hooks': '0.num_last_epochs 15 -> 7',
    }.items():
        assert sentence in parts[part]
    assert summary(before, before) == []


# ------------------------------------------------------------- a whole run


def with_paths(node):
    """A config with the paths of modules for types, as a lazy config becomes."""
    if isinstance(node, list):
        return [with_paths(value) for value in node]
    if not isinstance(node, dict):
        return node
    node = {key: with_paths(value) for key, value in node.items()}
    for name in ('MODELS', 'DATASETS', 'TRANSFORMS', 'METRICS', 'LOOPS', 'OPTIMIZERS'):
        if isinstance(node.get('type'), str):
            kind = getattr(registry, name).get(node['type'])
            if kind is not None:
                node['type'] = f'{kind.__module__}.{kind.__qualname__}'
    return node


@pytest.mark.parametrize('style', [dict, with_paths])
def test_a_converted_config_trains_and_is_attacked(coco, tmp_path, style):
    """Dumped, read again, trained for an epoch, tested."""
    standard = style(tiny.runner_config(coco, tmp_path / 'work', tiny.faster_rcnn()))
    if style is with_paths:
        standard['default_scope'] = None  # as mmdet's own lazy configs
    standard['train_dataloader']['dataset']['indices'] = 2
    cfg = robustify(Config(standard))
    assert cfg.train_cfg.max_epochs == 1  # 2 * 1 / 4, and at least one
    cfg.dump(tmp_path / 'robust.py')
    cfg = Config.fromfile(tmp_path / 'robust.py')
    for attack in cfg.test_cfg.attacks.values():
        attack.update({} if attack.name == 'noise' else dict(num_steps=1))
    cfg.test_cfg.num_images = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 4
    metrics = runner.test()
    for name in ('noise', 'pgd', 'cls', 'reg', 'cwa'):
        assert f'{name}/coco/bbox_mAP' in metrics
    assert (tmp_path / 'work' / 'robustness.json').is_file()


def test_a_test_pipeline_without_boxes_gets_them(coco, tmp_path):
    standard = tiny.runner_config(coco, tmp_path, tiny.fcos())
    pipeline = standard['test_dataloader']['dataset']['pipeline']
    del pipeline[2]
    cfg = robustify(Config(standard))
    names = [t['type'] for t in cfg.test_dataloader.dataset.pipeline]
    assert names == [
        *('LoadImageFromFile', 'Resize', 'mmdet.LoadAnnotations', 'PackDetInputs')
    ]


# ------------------------------------------------------------- other styles


def test_types_with_scopes_and_modules(coco, tmp_path):
    """As other projects write them, and as lazy configs become in text."""
    standard = tiny.runner_config(coco, tmp_path, tiny.fcos())
    plain = robustify(Config(standard))
    standard['train_cfg']['type'] = 'mmengine.EpochBasedTrainLoop'
    optimizer = standard['optim_wrapper']['optimizer']
    optimizer['type'] = f'torch.optim.{optimizer["type"]}'
    constructor = 'mmengine.optim.DefaultOptimWrapperConstructor'
    standard['optim_wrapper']['constructor'] = constructor
    standard['model']['type'] = 'mmdet.models.detectors.fcos.FCOS'
    scoped = robustify(Config(standard))
    assert same(plain.optim_wrapper, scoped.optim_wrapper)
    assert same(plain.train_cfg, scoped.train_cfg)
    with pytest.raises(ConfigError, match='adversarial already'):
        robustify(scoped)


def test_a_lazy_config(tmp_path):
    """Pure Python, with classes for types; the result is text and builds."""
    source = tmp_path / 'lazy.py'
    source.write_text(LAZY)
    cfg = robustify(str(source))
    assert cfg.train_cfg.type == 'mmrobust.AdvEpochBasedTrainLoop'
    assert cfg.train_cfg.max_epochs == 6
    cfg.dump(tmp_path / 'robust.py')
    again = Config.fromfile(tmp_path / 'robust.py')
    assert type(MODELS.build(again.model)).__name__ == 'FCOS'
    # Of the head nothing but the spelling of its classes has changed.
    changes = summary(Config.fromfile(source), cfg)
    assert not any('loss_bbox' in line for line in changes)
    assert again.param_scheduler[0].type.endswith('CosineAnnealingLR')
    # Operators that mmcv and mmdet look up by name, and one that is registered.
    assert again.model.test_cfg.nms.type == 'nms'
    pooling, convolution = (each.type for each in again.operators)
    assert pooling == 'RoIAlign'
    assert MODELS.get(convolution).__name__ == 'ModulatedDeformConv2dPack'


LAZY = """
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign, nms
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs
from mmdet.models import FCOS, FPN, FCOSHead, ResNet
from mmdet.models.losses.iou_loss import GIoULoss
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler import CosineAnnealingLR
from mmengine.runner import EpochBasedTrainLoop
from torch.optim import SGD

default_scope = None
model = dict(
    type=FCOS,
    backbone=dict(type=ResNet, depth=18, out_indices=(1, 2, 3)),
    neck=dict(type=FPN, in_channels=[128, 256, 512], out_channels=16, num_outs=3),
    bbox_head=dict(type=FCOSHead, num_classes=2, in_channels=16, strides=[8, 16, 32]),
)
model['bbox_head'].update(loss_bbox=dict(type=GIoULoss))
model['test_cfg'] = dict(nms=dict(type=nms, iou_threshold=0.5))
operators = [dict(type=RoIAlign), dict(type=ModulatedDeformConv2dPack)]
pipeline = [dict(type=LoadAnnotations, with_bbox=True), dict(type=PackDetInputs)]
train_dataloader = dict(dataset=dict(type=CocoDataset, pipeline=pipeline))
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=12)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
param_scheduler = [dict(type=CosineAnnealingLR, eta_min=0.001, begin=0, end=12)]
"""


def test_boxes_loaded_inside_another_transform(coco, tmp_path):
    standard = tiny.runner_config(coco, tmp_path, tiny.fcos())
    for key in ('train_dataloader', 'test_dataloader'):
        pipeline = standard[key]['dataset']['pipeline']
        pipeline[1:-1] = [dict(type='RandomChoice', transforms=[pipeline[1:-1]])]
    cfg = robustify(Config(standard))
    assert len(cfg.test_dataloader.dataset.pipeline) == 3


def test_several_heads_of_regions_and_imports_of_a_project(coco, tmp_path):
    """As CO-DETR's; an import that is a text stays whole."""
    standard = tiny.runner_config(coco, tmp_path, tiny.fcos())
    head = dict(type='CoStandardRoIHead', bbox_head=dict(type='SSDHead'))
    standard['model']['roi_head'] = [head]
    standard['custom_imports'] = dict(imports='projects.CO-DETR.codetr')
    cfg = robustify(Config(standard))
    assert cfg.model.roi_head[0].bbox_head.type == 'mmrobust.SSDHead'
    assert cfg.custom_imports.imports == ['mmrobust', 'projects.CO-DETR.codetr']


# ------------------------------------------------------------- refusals

NO_BOXES = dict(type='LoadAnnotations', with_bbox=False)
NESTED = dict(
    constructor='Mine',
    backbone=dict(optimizer=dict(type='SGD')),
    head=dict(optimizer=dict(type='SGD')),
)


@pytest.mark.parametrize(
    ('path', 'value', 'sentence'),
    [
        ('model.backbone', None, 'FCOS has no backbone in the config.* by hand'),
        ('model', None, 'has no model'),
        ('model.type', 'ImageClassifier', 'ImageClassifier is a classifier'),
        ('model.data_preprocessor.type', 'MultiBranchX', 'takes several branches'),
        ('optim_wrapper', None, 'has no optim_wrapper'),
        ('optim_wrapper.optimizer', 'SGD', 'optimizer is not a single dict'),
        ('optim_wrapper.optimizer', dict(a=dict(type='SGD')), 'not a single dict'),
        ('optim_wrapper', NESTED, 'not a single dict'),
        ('optim_wrapper.constructor', 'Own', r'optimizer rules of its own \(Own\)'),
        ('optim_wrapper.accumulative_counts', 4, r'counts=4 would .* method \'pgd\''),
        ('train_cfg.type', 'MyLoop', 'a train loop of its own, MyLoop'),
        ('train_cfg', None, 'has no train_cfg'),
        ('train_cfg.max_epochs', None, 'has no max_epochs'),
        ('train_dataloader', None, 'has no train_dataloader'),
        ('train_dataloader.dataset.pipeline', [], 'of CocoDataset loads no boxes'),
        ('train_dataloader.dataset.pipeline', [NO_BOXES], 'loads no boxes'),
    ],
)
def test_configs_that_are_refused(coco, tmp_path, path, value, sentence):
    refuse(coco, tmp_path, {path: value}, {}, sentence)


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (
            dict(method='fre'),
            r"'fre' is unknown \(did you mean 'free'\?\): choose from free, pgd",
        ),
        (dict(preset='papers'), "choose 'default' or 'paper'"),
        (dict(preset='paper', method='pgd'), "the preset 'paper' is FreeAT"),
        (dict(eps=-1), 'eps=-1 is negative'),
        (dict(eps=0.016), 'write eps=4.08'),
        (dict(norm='l3'), "norm='l3' is unknown"),
        (dict(replays=0), 'replays=0 must be'),
        (dict(method='pgd', replays=3), "replays=3 has no meaning for the method 'p"),
        (dict(schedule=0), 'schedule=0 must be a finite number above 0'),
        (dict(num_steps=3), "no meaning for the method 'free'"),
        (dict(method='pgd', num_steps=0), 'num_steps=0 must be'),
        (
            dict(backbone='resnet51'),
            r"'resnet51' is unknown \(did you mean 'resnet\d+'\?\): choose from",
        ),
        (dict(backbone='convnext-tiny-convstem'), 'no file of robust weights is known'),
    ],
)
def test_options_that_are_refused(coco, tmp_path, options, sentence):
    refuse(coco, tmp_path, {}, options, sentence)


@pytest.mark.parametrize(
    ('path', 'value', 'options', 'sentence'),
    [
        ('neck', None, dict(backbone='resnet50'), 'no neck whose in_channels'),
        ('backbone.strides', (1, 2, 1, 1), dict(backbone='resnet50'), r'\[8, 8, 8\]'),
        ('neck.num_outs', 2, dict(backbone='resnet50'), 'does not fit into FCOS'),
        (
            'backbone.style',
            'caffe',
            dict(backbone_weights='x'),
            'Caffe style.*resnet50',
        ),
    ],
)
def test_backbones_that_do_not_fit(coco, tmp_path, path, value, options, sentence):
    refuse(coco, tmp_path, {f'model.{path}': value}, options, sentence)


def refuse(coco, tmp_path, changes, options, sentence):
    """Changes settings of a config; None takes one out."""
    cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    for path, value in changes.items():
        *parents, key = path.split('.')
        node = cfg
        for parent in parents:
            node = node[parent]
        if value is None:
            node.pop(key)
        else:
            node[key] = value  # update() would merge dicts
    with pytest.raises(ConfigError, match=sentence) as caught:
        robustify(cfg, **options)
    assert str(caught.value).endswith('.')
    assert '\n' not in str(caught.value)


def test_a_config_that_does_not_exist():
    with pytest.raises(ConfigError, match='does not exist: check the path'):
        robustify('nowhere.py')
    with pytest.raises(ConfigError, match='package that is not installed'):
        robustify('nowhere::fcos.py')
    with pytest.raises(ConfigError, match='fcos/nothing'):
        robustify('mmdet::fcos/nothing.py')


def test_ssd_gets_a_head_that_predicts():
    cfg = robustify('mmdet::pascal_voc/ssd300_voc0712.py', eps=8)
    assert cfg.model.bbox_head.type == 'mmrobust.SSDHead'


def test_the_package_offers_it():
    assert mmrobust.robustify is robustify
    with pytest.raises(AttributeError, match='nothing'):
        mmrobust.nothing  # noqa: B018
