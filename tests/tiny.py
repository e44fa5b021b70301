"""Tiny detectors and a tiny COCO dataset: small enough for a CPU, real all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import nn

CLASSES = ('disc', 'square', 'stripe')


def make_coco(
    root: Path, num_images: int = 6, sizes: Any = None, seed: int = 0
) -> Path:
    """Writes images with coloured shapes and their boxes in COCO's layout.

    Images have different sizes; the last one has no object.
    """
    rng = np.random.default_rng(seed)
    sizes = sizes or [(96, 128), (80, 112), (128, 96)]
    (root / 'images').mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(num_images):
        height, width = sizes[index % len(sizes)]
        picture = rng.integers(90, 140, (height, width, 3), dtype=np.uint8)
        for _ in range(0 if index == num_images - 1 else 1 + index % 2):
            label = int(rng.integers(len(CLASSES)))
            side = int(rng.integers(24, 48))
            x = int(rng.integers(0, width - side))
            y = int(rng.integers(0, height - side))
            colour = [int(v) for v in rng.permutation([250, 20, 130])]
            if label == 0:
                centre = (x + side // 2, y + side // 2)
                cv2.circle(picture, centre, side // 2, colour, -1)
            else:
                step = 1 if label == 1 else 4
                picture[y : y + side : step, x : x + side] = colour
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index + 10,
                    category_id=label + 1,
                    bbox=[x, y, side, side],
                    area=side * side,
                    iscrowd=0,
                    segmentation=[[x, y, x + side, y, x + side, y + side, x, y + side]],
                )
            )
        name = f'{index:03d}.png'
        cv2.imwrite(str(root / 'images' / name), picture)
        images.append(dict(id=index + 10, file_name=name, height=height, width=width))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'annotations.json').write_text(json.dumps(content))
    return root


def instances(boxes: Any, labels: Any, scores: Any = None) -> InstanceData:
    """Objects, or detections if they have scores, of lists of numbers."""
    found = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
    )
    if scores is not None:
        found.scores = torch.tensor(scores, dtype=torch.float32)
    return found


_PREPROCESSOR = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_size_divisor=32,
)


def _resnet(out_indices: tuple[int, ...]) -> dict:
    return dict(
        type='ResNet',
        depth=18,
        base_channels=4,
        out_indices=out_indices,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
    )


def fcos() -> dict:
    """FCOS with the norm-on-bbox, centre-sampling, GIoU head of the papers."""
    return dict(
        type='FCOS',
        data_preprocessor=_PREPROCESSOR,
        backbone=_resnet((1, 2, 3)),
        neck=dict(
            type='FPN',
            in_channels=[8, 16, 32],
            out_channels=16,
            add_extra_convs='on_output',
            num_outs=4,
        ),
        bbox_head=dict(
            type='FCOSHead',
            num_classes=len(CLASSES),
            in_channels=16,
            stacked_convs=1,
            feat_channels=16,
            strides=[8, 16, 32, 64],
            regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)),
            norm_on_bbox=True,
            centerness_on_reg=True,
            center_sampling=True,
            conv_bias=True,
            norm_cfg=dict(type='GN', num_groups=4, requires_grad=True),
            loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        ),
        test_cfg=dict(
            nms_pre=100,
            score_thr=0.01,
            nms=dict(type='nms', iou_threshold=0.6),
            max_per_img=20,
        ),
    )


def faster_rcnn() -> dict:
    """Faster R-CNN with its random samplers."""
    return _two_stage('FasterRCNN')


def mask_rcnn() -> dict:
    """Mask R-CNN."""
    model = _two_stage('MaskRCNN')
    model['data_preprocessor'] = dict(_PREPROCESSOR, pad_mask=True)
    model['roi_head'].update(
        mask_roi_extractor=_roi_extractor(14),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=1,
            in_channels=16,
            conv_out_channels=16,
            num_classes=len(CLASSES),
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    )
    model['train_cfg']['rcnn']['mask_size'] = 28
    model['test_cfg']['rcnn']['mask_thr_binary'] = 0.5
    return model


def _roi_extractor(size: int) -> dict:
    return dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=size, sampling_ratio=0),
        out_channels=16,
        featmap_strides=[4, 8, 16, 32],
    )


def _two_stage(kind: str) -> dict:
    def assigner(low: float, high: float) -> dict:
        return dict(
            type='MaxIoUAssigner',
            pos_iou_thr=high,
            neg_iou_thr=low,
            min_pos_iou=low,
            match_low_quality=True,
        )

    def sampler(num: int, fraction: float, add_gt: bool) -> dict:
        return dict(
            type='RandomSampler',
            num=num,
            pos_fraction=fraction,
            neg_pos_ub=-1,
            add_gt_as_proposals=add_gt,
        )

    proposals = dict(
        nms_pre=100,
        max_per_img=50,
        nms=dict(type='nms', iou_threshold=0.7),
        min_bbox_size=0,
    )
    return dict(
        type=kind,
        data_preprocessor=_PREPROCESSOR,
        backbone=_resnet((0, 1, 2, 3)),
        neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=16, num_outs=4),
        rpn_head=dict(
            type='RPNHead',
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator',
                scales=[6],
                ratios=[1.0],
                strides=[4, 8, 16, 32],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=_roi_extractor(7),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=16,
                fc_out_channels=32,
                roi_feat_size=7,
                num_classes=len(CLASSES),
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]
                ),
                reg_class_agnostic=False,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
                loss_bbox=dict(type='L1Loss', loss_weight=1.0),
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=assigner(0.3, 0.7),
                sampler=sampler(64, 0.5, False),
                allowed_border=-1,
                pos_weight=-1,
            ),
            rpn_proposal=proposals,
            rcnn=dict(
                assigner=assigner(0.5, 0.5),
                sampler=sampler(64, 0.25, True),
                pos_weight=-1,
            ),
        ),
        test_cfg=dict(
            rpn=proposals,
            rcnn=dict(
                score_thr=0.01, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20
            ),
        ),
    )


def retinanet() -> dict:
    """RetinaNet, whose losses are lists over feature levels."""
    return dict(
        type='RetinaNet',
        data_preprocessor=_PREPROCESSOR,
        backbone=_resnet((1, 2, 3)),
        neck=dict(type='FPN', in_channels=[8, 16, 32], out_channels=16, num_outs=3),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=len(CLASSES),
            in_channels=16,
            stacked_convs=1,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[8, 16, 32],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.4,
                min_pos_iou=0,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(
            nms_pre=100,
            min_bbox_size=0,
            score_thr=0.01,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=20,
        ),
    )


def mmdet_model(config: str, **backbone: Any) -> dict:
    """A shrunk model of one of mmdet's own transformer configs."""
    from mmengine.hub import get_config

    model = get_config(f'mmdet::{config}').model.to_dict()
    head = model['bbox_head']
    head['num_classes'] = len(CLASSES)
    model['num_queries'] = 10
    for part in ('encoder', 'decoder'):
        model[part]['num_layers'] = 2
        feedforward = model[part]['layer_cfg']['ffn_cfg']
        feedforward['feedforward_channels'] = 32
    outputs = model['backbone']['out_indices']
    model['backbone'] = {**_resnet(tuple(outputs)), 'base_channels': 8, **backbone}
    model['neck']['in_channels'] = [8 * 2**i for i in outputs]
    model['test_cfg'] = dict(max_per_img=10)
    if 'dn_cfg' in model:
        model['dn_cfg']['group_cfg'] = dict(
            dynamic=True, num_groups=None, num_dn_queries=4
        )
    return model


def detr() -> dict:
    """DETR, whose dropout sits inside nn.MultiheadAttention."""
    return mmdet_model('detr/detr_r50_8xb2-150e_coco.py')


def dab_detr() -> dict:
    """DAB-DETR."""
    return mmdet_model('dab_detr/dab-detr_r50_8xb2-50e_coco.py')


def dn_detr() -> dict:
    """DN-DETR, whose denoising queries exist in training only."""
    model = dab_detr()
    model['type'] = 'mmrobust.DNDETR'
    model['bbox_head']['type'] = 'mmrobust.DNDETRHead'
    model['dn_cfg'] = dict(
        label_noise_scale=0.3,
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=False, num_groups=2),
    )
    return model


def deformable_detr() -> dict:
    """Deformable DETR, whose loss needs the detector's training flag."""
    return mmdet_model('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')


def dino() -> dict:
    """DINO, with random denoising queries made from the ground truth."""
    return mmdet_model('dino/dino-4scale_r50_8xb2-12e_coco.py')


FAMILIES = {
    'fcos': fcos,
    'faster_rcnn': faster_rcnn,
    'mask_rcnn': mask_rcnn,
    'retinanet': retinanet,
    'detr': detr,
    'dab_detr': dab_detr,
    'dn_detr': dn_detr,
    'deformable_detr': deformable_detr,
    'dino': dino,
}


def pipeline(
    test: bool, scale: tuple[int, int] = (128, 96), masks: bool = False
) -> list:
    """mmdet's usual pipeline; in the test one annotations come after resizing."""
    load = dict(type='LoadImageFromFile')
    annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)
    resize = dict(type='Resize', scale=scale, keep_ratio=True)
    if test:
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        return [load, resize, annotations, dict(type='PackDetInputs', meta_keys=keys)]
    return [load, annotations, resize, dict(type='PackDetInputs')]


def dataset(root: Path, test: bool, **kwargs: Any) -> dict:
    """Config of the tiny dataset."""
    masks, scale = kwargs.pop('masks', False), kwargs.pop('scale', (128, 96))
    return dict(
        type='CocoDataset',
        metainfo=dict(classes=CLASSES),
        data_root=str(root) + '/',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        test_mode=test,
        pipeline=pipeline(test, scale, masks),
        **kwargs,
    )


def loader(root: Path, test: bool, batch_size: int = 1, **kwargs: Any) -> dict:
    """Config of a data loader without worker processes."""
    return dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=not test),
        dataset=dataset(root, test, **kwargs),
    )


def runner_config(root: Path, work_dir: Path, model: dict, **overrides: Any) -> dict:
    """Config dict of a whole mmengine Runner on the tiny dataset."""
    evaluator = dict(
        type='CocoMetric', ann_file=str(root / 'annotations.json'), metric='bbox'
    )
    cfg: dict[str, Any] = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader(root, test=False, batch_size=2),
        val_dataloader=loader(root, test=True),
        test_dataloader=loader(root, test=True),
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=100),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)
        ),
        default_hooks=dict(
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=1000),
            param_scheduler=dict(type='ParamSchedulerHook'),
            checkpoint=dict(type='CheckpointHook', interval=1),
            sampler_seed=dict(type='DistSamplerSeedHook'),
        ),
        visualizer=dict(type='DetLocalVisualizer', vis_backends=[]),
        default_scope='mmdet',
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    cfg.update(overrides)
    return cfg


def filled(model: nn.Module) -> nn.Module:
    """The model with numbers where mmdet leaves memory as it is until init_weights."""
    for name, weight in model.named_parameters():
        if name.endswith('level_embed'):  # of Deformable DETR and DINO
            nn.init.normal_(weight)
    return model
