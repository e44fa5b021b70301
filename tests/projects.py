"""A small project that the cases break: data, configs and checkpoints."""

from __future__ import annotations

import argparse
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tiny
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope

IMAGES, SIZES = 3, [(48, 64), (40, 56)]
IMPORTS = dict(imports=['mmrobust'], allow_failed_imports=False)


class Source(str):
    """A value that is written to a config as it stands here."""


def source(value: Any) -> str:
    """A value as Python writes it."""
    if isinstance(value, Source):
        return str(value)
    if isinstance(value, dict):
        inside = ', '.join(f'{k!r}: {source(v)}' for k, v in value.items())
        return f'{{{inside}}}'
    if isinstance(value, (list, tuple)):
        inside = ''.join(f'{source(v)}, ' for v in value)
        return f'[{inside}]' if isinstance(value, list) else f'({inside})'
    return repr(value)


def config_text(settings: dict[str, Any]) -> str:
    """A config file."""
    return ''.join(f'{key} = {source(value)}\n' for key, value in settings.items())


def detector(project: Path) -> dict[str, Any]:
    """A config that trains and tests with every kind of setting of ours."""
    cfg = deepcopy(tiny.runner_config(project / 'data', project / 'x', tiny.fcos()))
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for transform in cfg[key]['dataset']['pipeline']:
            if transform['type'] == 'Resize':
                transform['scale'] = (64, 48)
    del cfg['work_dir']
    free = dict(type='mmrobust.FreeAdversary', norm='linf', eps=4, replays=2)
    free.update(carry='epoch', objective='total', warmup_iters=0, share=1.0)
    pgd = dict(type='mmrobust.PGD', norm='linf', eps=4, num_steps=1, step_size=2)
    pgd.update(restarts=1, random_start=True, objective='cls')
    return dict(
        cfg,
        data_root=f'{project}/data/',
        custom_imports=IMPORTS,
        train_cfg=dict(
            type='mmrobust.AdvEpochBasedTrainLoop',
            max_epochs=1,
            val_interval=100,
            adversary=free,
        ),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop',
            seed=0,
            num_images=2,
            gt_frame='auto',
            space='input',
            check_images=0,
            gallery=0,
            attacks=dict(pgd=pgd),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=2)
        ],
        optim_wrapper=dict(
            type='OptimWrapper',
            constructor='mmrobust.BackboneLrOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=0.01, weight_decay=1e-4),
            paramwise_cfg=dict(backbone_lr_mult=0.1, norm_decay_mult=0.0),
            clip_grad=dict(max_norm=1.0),
        ),
        visualizer=dict(
            type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
        ),
        load_from=None,
        resume=False,
    )


def standard(project: Path) -> dict[str, Any]:
    """The detector without anything of ours."""
    return dict(
        detector(project),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
    )


def classifier(project: Path) -> dict[str, Any]:
    """A classifier, trained and tested with PGD."""
    loader = dict(
        batch_size=3,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='CustomDataset',
            data_root=f'{project}/classes',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        ),
    )
    backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    backbone.update(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    return dict(
        default_scope='mmpretrain',
        custom_imports=IMPORTS,
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(
                type='ClsDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3
            ),
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
        ),
        train_dataloader=loader,
        test_dataloader=deepcopy(loader),
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        train_cfg=dict(
            type='mmrobust.AdvEpochBasedTrainLoop',
            max_epochs=1,
            adversary=dict(type='mmrobust.PGDAdversary', eps=4, num_steps=1),
        ),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop',
            attacks=dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=1)),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1000)),
        randomness=dict(seed=0),
        log_level='ERROR',
    )


def build(folder: Path) -> Path:
    """Makes the project."""
    tiny.make_coco(folder / 'data', IMAGES, SIZES)
    picture = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    for label in range(3):
        (folder / f'classes/class{label}').mkdir(parents=True)
        cv2.imwrite(f'{folder}/classes/class{label}/a.png', picture)
    configs = dict(config=detector, standard=standard, classifier=classifier)
    for name, config in configs.items():
        (folder / f'{name}.py').write_text(config_text(config(folder)))
    wider = tiny.fcos()
    wider['bbox_head']['num_classes'] = 7
    small = classifier(folder)['model']
    models = {'good': tiny.fcos(), 'wider': wider, 'other': tiny.faster_rcnn()}
    models['classifier'] = small
    # Known to tools/convert_backbone.py, as far as names and shapes go.
    models['resnet18'] = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18),
        data_preprocessor=small['data_preprocessor'],
    )
    for name, model in models.items():
        scope = 'mmpretrain' if model['type'] == 'ImageClassifier' else 'mmdet'
        with DefaultScope.overwrite_default_scope(scope):
            torch.manual_seed(0)
            weights = MODELS.build(ConfigDict(deepcopy(model))).state_dict()
        meta = dict(epoch=0, iter=0)
        torch.save(dict(state_dict=weights, meta=meta), folder / f'{name}.pth')
    damage(folder)
    (folder / 'file').write_text('')
    (folder / 'loop').symlink_to('loop')
    return folder


def damage(folder: Path) -> None:
    """Writes checkpoints that no tool can use, by the names in ``DAMAGED``."""
    whole = (folder / 'good.pth').read_bytes()
    state = torch.load(folder / 'good.pth', weights_only=True)['state_dict']
    first = next(key for key, value in state.items() if value.dim() == 4)
    weight = state[first]
    content: dict[str, Any] = {
        'truncated': whole[: len(whole) // 2],
        'half': whole[:100],
        'text': b'no checkpoint',
        'empty': b'',
        'zip': b'PK\x03\x04' + b'\0' * 200,
        'code': argparse.Namespace(x=1),
        'list': [torch.zeros(1)],
        'number': 3,
        'nothing': {},
        'no_tensors': dict(state_dict={}, meta={}),
        'missing_key': {k: v for k, v in state.items() if k != first},
        'transposed': {**state, first: weight.transpose(0, 1)},
        'nan': {**state, first: torch.full_like(weight, math.nan)},
        'strings': {**state, first: 'x'},
        'numbered': dict(enumerate(state.values())),
    }
    for name, value in content.items():
        path = folder / f'{name}.pth'
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            torch.save(value, path)


DAMAGED = (
    *('truncated', 'half', 'text', 'empty', 'zip', 'code', 'list', 'number', 'nothing'),
    *('no_tensors', 'missing_key', 'transposed', 'nan', 'strings', 'numbered'),
    *('wider', 'other'),
)
