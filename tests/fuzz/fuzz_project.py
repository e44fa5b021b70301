"""A small project to break: data, configs and checkpoints of two tiny models."""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tiny
import torch
from fuzz_case import HERE, PROJECT, Source, config_text
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

SIZES = [(48, 64), (40, 56)]
IMAGES = 3


def detector() -> dict[str, Any]:
    """A whole config that trains and tests with every kind of setting of ours."""
    root = Path(PROJECT) / 'data'
    # A copy: its parts are shared, and cases change them.
    cfg = deepcopy(tiny.runner_config(root, Path(HERE) / 'work', tiny.fcos()))
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for transform in cfg[key]['dataset']['pipeline']:
            if transform['type'] == 'Resize':
                transform['scale'] = (64, 48)
    del cfg['work_dir']
    cfg['data_root'] = f'{root}/'
    cfg['custom_imports'] = dict(imports=['mmrobust'], allow_failed_imports=False)
    cfg['train_cfg'] = dict(
        type='mmrobust.AdvEpochBasedTrainLoop',
        max_epochs=1,
        val_interval=100,
        adversary=dict(
            type='mmrobust.FreeAdversary',
            norm='linf',
            eps=4,
            replays=2,
            carry='epoch',
            objective='total',
            warmup_iters=0,
            share=1.0,
            class_weighting=None,
        ),
    )
    cfg['test_cfg'] = dict(
        type='mmrobust.AttackTestLoop',
        seed=0,
        num_images=2,
        gt_frame='auto',
        space='input',
        check_images=0,
        gallery=0,
        attacks=dict(
            pgd=dict(
                type='mmrobust.PGD',
                norm='linf',
                eps=4,
                num_steps=1,
                step_size=2,
                restarts=1,
                random_start=True,
                objective='cls',
            )
        ),
    )
    cfg['param_scheduler'] = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=2)
    ]
    cfg['optim_wrapper'] = dict(
        type='OptimWrapper',
        constructor='mmrobust.BackboneLrOptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=0.01, weight_decay=1e-4),
        paramwise_cfg=dict(backbone_lr_mult=0.1, norm_decay_mult=0.0),
        clip_grad=dict(max_norm=1.0),
    )
    cfg['visualizer'] = dict(
        type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
    )
    cfg['env_cfg'] = dict(cudnn_benchmark=False)
    cfg['load_from'], cfg['resume'] = None, False
    return cfg


def classifier() -> dict[str, Any]:
    """A classifier, tested with PGD."""

    def loader() -> dict[str, Any]:
        return dict(
            batch_size=3,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='CustomDataset',
                data_root=f'{PROJECT}/classes',
                pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
            ),
        )

    accuracy = dict(type='Accuracy', topk=(1,))
    return dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmrobust'], allow_failed_imports=False),
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(
                type='ClsDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3
            ),
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=8,
                stem_channels=8,
                num_stages=1,
                strides=(1,),
                dilations=(1,),
                out_indices=(0,),
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
        ),
        train_dataloader=loader(),
        test_dataloader=loader(),
        test_evaluator=accuracy,
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


def standard() -> dict[str, Any]:
    """The detector without anything of ours."""
    cfg = detector()
    cfg['train_cfg'] = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg['test_cfg'] = dict(type='TestLoop')
    cfg['optim_wrapper'] = dict(optimizer=dict(type='SGD', lr=0.01))
    return cfg


CONFIGS = {'config': detector, 'classifier': classifier, 'standard': standard}


def fill(text: str, project: Path, here: Path) -> str:
    """Puts the folders in their places."""
    return text.replace(PROJECT, str(project)).replace(HERE, str(here))


def build(folder: Path) -> Path:
    """Makes the project."""
    from mmengine.registry import MODELS

    tiny.make_coco(folder / 'data', IMAGES, SIZES)
    rng = np.random.default_rng(0)
    for label in range(3):
        (folder / 'classes' / f'class{label}').mkdir(parents=True)
        picture = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'classes' / f'class{label}' / 'a.png'), picture)
    for name, config in CONFIGS.items():
        text = config_text(config())
        (folder / f'{name}.py').write_text(fill(text, folder, folder / 'unused'))
    spaced = folder / 'a folder'
    spaced.mkdir()
    (spaced / 'a config.py').write_text((folder / 'config.py').read_text())
    wider = tiny.fcos()
    wider['bbox_head']['num_classes'] = 7
    models = {'good': tiny.fcos(), 'wider': wider, 'other': tiny.faster_rcnn()}
    models['classifier'] = classifier()['model']
    # What tools/convert_backbone.py knows, as far as names and shapes go.
    models['resnet18'] = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18),
        data_preprocessor=classifier()['model']['data_preprocessor'],
    )
    for name, model in models.items():
        scope = 'mmpretrain' if model['type'] == 'ImageClassifier' else 'mmdet'
        with DefaultScope.overwrite_default_scope(scope):
            torch.manual_seed(0)
            weights = MODELS.build(ConfigDict(deepcopy(model))).state_dict()
        meta = dict(epoch=0, iter=0)
        torch.save(dict(state_dict=weights, meta=meta), folder / f'{name}.pth')
    (spaced / 'a good.pth').write_bytes((folder / 'good.pth').read_bytes())
    _damaged_checkpoints(folder)
    (folder / 'file').write_text('')
    (folder / 'folder').mkdir()
    (folder / 'loop').symlink_to('loop')
    (folder / 'broken link').symlink_to('nothing')
    return folder


# Checkpoints that no tool can use, and whether a longer look is needed to see it.
DAMAGED = (
    *('truncated', 'half', 'flipped', 'text', 'empty', 'zip', 'code', 'list', 'number'),
    *('nothing', 'no_tensors', 'wider', 'other', 'missing_key', 'transposed', 'nan'),
    *('huge', 'integers', 'strings', 'numbered', 'nested', 'folder_of', 'zeros'),
)


def _damaged_checkpoints(folder: Path) -> None:
    """Files by the names in ``DAMAGED``."""
    whole = (folder / 'good.pth').read_bytes()
    checkpoint = torch.load(folder / 'good.pth', weights_only=True)
    state: OrderedDict = checkpoint['state_dict']
    first = next(k for k, v in state.items() if v.dim() == 4)
    flipped = bytearray(whole)
    for place in range(100, len(flipped), 997):
        flipped[place] ^= 0xFF

    def write(name: str, content: bytes) -> None:
        (folder / f'{name}.pth').write_bytes(content)

    def save(name: str, content: Any) -> None:
        torch.save(content, folder / f'{name}.pth')

    def changed(**weights: Any) -> dict[str, Any]:
        return dict(state_dict={**state, **weights}, meta=dict(epoch=0, iter=0))

    write('truncated', whole[: len(whole) // 2])
    write('half', whole[:100])
    write('flipped', bytes(flipped))
    write('text', b'no checkpoint')
    write('empty', b'')
    write('zip', b'PK\x03\x04' + b'\0' * 200)
    write('zeros', b'\0' * 4096)
    save('code', argparse.Namespace(x=1))
    save('list', [torch.zeros(1)])
    save('number', 3)
    save('nothing', {})
    save('no_tensors', dict(state_dict={}, meta={}))
    save('missing_key', dict(state_dict={k: v for k, v in state.items() if k != first}))
    save('transposed', changed(**{first: state[first].transpose(0, 1)}))
    save('nan', changed(**{first: torch.full_like(state[first], math.nan)}))
    save('huge', changed(**{first: torch.full_like(state[first], 1e38)}))
    save('integers', changed(**{first: state[first].to(torch.int64)}))
    save('strings', changed(**{first: 'x'}))
    save('numbered', dict(state_dict=dict(enumerate(state.values()))))
    save('nested', dict(state_dict=dict(state_dict=state)))
    save('extra', {**changed(more=torch.zeros(3)), 'more': 1})
    (folder / 'folder_of.pth').mkdir()


__all__ = ['CONFIGS', 'DAMAGED', 'Source', 'build', 'fill']
