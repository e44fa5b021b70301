"""What the configs make of the recipes: rates, schedules, presets, data of VOC."""

import cv2
import numpy as np
import pytest
import torch
from config_files import (
    BACKBONES,
    CONFIGS,
    DETECTORS,
    differences,
    parameter_groups,
    parse,
    settings,
    walk,
    without_downloads,
    without_memory,
)
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmrobust.attacks import attack_preset
from mmrobust.frame import FRAME, FramedDataset
from mmrobust.models import BoundedLoss
from mmrobust.objective import loss_mode
from mmrobust.objective.class_weights import count_classes
from mmrobust.registry import ADVERSARIES, ATTACKS
from mmrobust.utils.configs import merge_options
from mmrobust.weights import BACKBONES as TABLE
from mmrobust.weights.architectures import vit

SIX = [f'{d}_{b}' for d in DETECTORS for b in BACKBONES[:2]]


def built(attack):
    """Everything that tells two attacks apart."""
    return ATTACKS.build(dict(attack)).describe()


@pytest.mark.parametrize(
    ('part', 'variable', 'eps'),
    [('linf4', 'attacks', 4), ('linf8', 'linf8_attacks', 8)],
)
def test_the_attacks_are_those_of_the_paper(part, variable, eps):
    """Radius 4 on COCO and 8 on VOC; 10 steps of a quarter of it."""
    cfg = parse(f'_base_/attacks/{part}')
    assert set(cfg) == {variable}
    attacks = cfg[variable]
    assert list(attacks) == ['noise', 'pgd', 'cls', 'reg', 'cwa']
    steps = dict(num_steps=10, step_size=eps / 4)
    for name, attack in attacks.items():
        wanted = attack_preset(name, eps=eps, **(steps if name != 'noise' else {}))
        assert built(attack) == built(wanted), name
        if name != 'noise':
            assert built(attack)['random_start'] is (name == 'pgd')


# ------------------------------------------------------------------------ backbones


@pytest.mark.parametrize('detector', DETECTORS)
@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('r50', 'resnet50'),
        ('convnext', 'convnext-tiny'),
        ('convnext-convstem', 'convnext-tiny-convstem'),
    ],
)
def test_backbones_are_those_of_the_table(detector, kind, name):
    """Type, settings, channels and weights; DN-DETR takes the last level alone."""
    model, known = parse(f'robust_{detector}_{kind}').model, TABLE[name]
    levels = [3] if detector == 'dn-detr' else [0, 1, 2, 3]
    found = {
        k: v for k, v in model.backbone.items() if k not in ('init_cfg', '_scope_')
    }
    # The affine weights of BatchNorm learn in Faster R-CNN alone, as in mmdet.
    frozen = kind == 'r50' and detector != 'faster-rcnn'
    norm = dict(norm_cfg=dict(type='BN', requires_grad=False)) if frozen else {}
    found['out_indices'] = list(found['out_indices'])
    assert found == {**known.detection, 'out_indices': levels, **norm}
    assert model.neck.in_channels == [known.channels[level] for level in levels]
    assert list(model.backbone.init_cfg.get('fresh', ())) == list(known.fresh)
    if known.weights:
        assert model.backbone.init_cfg.checkpoint == known.weights
    preprocessor = known.normalization.settings('bgr_to_rgb')
    assert dict(model.data_preprocessor).items() >= preprocessor.items()


LARGE = ('convnext-large', 'swin-large', 'clip-large', 'vit-huge', 'vit-giant')


@pytest.mark.parametrize('name', LARGE)
def test_large_backbones_are_those_of_the_table(name):
    """As `--backbone` gives them, with activations that are computed again."""
    cfg, known = parse(f'scale/robust_faster-rcnn_{name}'), TABLE[name]
    backbone = {k: v for k, v in cfg.model.backbone.items() if k != 'init_cfg'}
    again = backbone.pop('with_cp', False)
    assert backbone == known.detection
    assert cfg.model.neck.in_channels == list(known.channels)
    assert cfg.model.backbone.init_cfg.checkpoint == known.weights
    assert list(cfg.model.backbone.init_cfg.get('fresh', ())) == list(known.fresh)
    preprocessor = known.normalization.settings('bgr_to_rgb')
    assert dict(cfg.model.data_preprocessor).items() >= preprocessor.items()
    strategy = cfg.get('strategy', {})
    assert again is not strategy.get('recompute', False)


def test_levels_that_the_neck_leaves_out_have_norms_without_gradient():
    for detector in DETECTORS:
        cfg = parse(f'robust_{detector}_convnext')
        unused = cfg.model.neck.get('start_level', 0) > 0
        assert cfg.get('find_unused_parameters', False) is unused


def test_the_vit_is_that_of_the_table():
    backbone = parse('_base_/backbones/vit_small_convstem').vit_backbone
    known = vit(384, 12, 4 * 384, 14, convstem=True)
    assert dict(backbone).items() >= known.detection.items()


# ---------------------------------------------------------------- rates and presets


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
    'paper/robust_fcos_convnext': (LOW5, LOW5, LOW5, HIGH5, (2e-4, 0), HIGH5),
    'paper/robust_dn-detr_convnext': (*[(1e-6, 0.05)] * 3, HIGH5, HIGH5, HIGH5),
    # A DETR's own factor for the backbone, 0.1, and no other rule there, stay.
    'robust_detr_r50': ((1e-6, 0.1), None, '-', HIGH, HIGH, (1e-4, 0)),
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
}


def build(cfg):
    """The detector in training mode, and each parameter's learning rate and decay."""
    init_default_scope('mmdet')
    with without_memory():
        model = MODELS.build(without_downloads(cfg).model).train()
    names = {id(p): n for n, p in model.named_parameters()}
    return model, {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in parameter_groups(model, cfg)
        for p in group['params']
        if p.requires_grad
    }


@pytest.mark.parametrize('name', GROUPS)
def test_optimizer_groups(name):
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
def test_the_paper_preset(name):
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
        assert built(attack) == {**built(attack_preset(key)), 'keep_best': False}


def lr_trace(cfg, batches):
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
def test_schedule_with_warm_up(name):
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
def test_schedule_without_warm_up(name, before, after, lr):
    rates = lr_trace(parse(name), batches=2)
    wanted = [lr] * (8 * before) + [lr / 10] * (8 * after)
    assert rates == pytest.approx(wanted)


# -------------------------------------------------------------- VOC, ConvStem, ViT


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('detector', DETECTORS)
def test_voc_configs(detector, backbone):
    """Data, evaluator, number of classes, and radius 8 with steps of 2: no more."""
    name = f'robust_{detector}_{backbone}'
    coco, voc = parse(name), parse(f'{name}_voc')
    changed = differences(settings(coco), settings(voc))
    head = 'roi_head.bbox_head' if detector == 'faster-rcnn' else 'bbox_head'
    names = ('noise', 'pgd', 'cls', 'reg', 'cwa')
    attacks = {f'test_cfg.attacks.{name}.eps' for name in names}
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
    metric = dict(type='VOCMetric', metric='mAP', eval_mode='11points')
    # Nothing of COCO is left.
    assert dict(voc.val_evaluator) == dict(voc.test_evaluator) == metric
    METRICS.build(voc.test_evaluator)
    part = parse('_base_/datasets/voc0712')
    for key in ('train', 'val', 'test'):
        assert part[f'voc_{key}'].pop('_delete_') is True
        assert voc[f'{key}_dataloader'] == part[f'voc_{key}'], key
    assert voc.val_dataloader == voc.test_dataloader


@pytest.mark.parametrize('detector', ['faster-rcnn', 'fcos'])
def test_vit_configs(detector):
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


VOC_OBJECT = (
    '<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin>'
    '<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)


def make_voc(root):
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


def test_voc_data(tmp_path):
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
    sample = FramedDataset(test)[0]['data_samples']
    assert sample.get(FRAME) == 'original'
    assert sample.img_shape == (600, 720)
    # In the original frame; VOC counts from 1.
    assert sample.gt_instances.bboxes.tensor.tolist() == [[4, 4, 59, 69]]


def test_the_demo_compares_like_with_like():
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
    assert (adversary.eps, adversary.replays) == (8, 2)
    assert adversary.warmup_iters <= 0.8 * robust.train_cfg.max_iters
    # The last validation falls on the last update, and so does the schedule's end.
    assert standard.param_scheduler[-1]['end'] == standard.train_cfg.max_iters
