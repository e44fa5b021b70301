# FCOS with a ConvNeXt-T backbone on COCO, made robust as in arXiv 2305.17438:
# adversarially pre-trained backbone, FreeAT, AdamW, backbone learning rate x0.1.
_base_ = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    './_base_/adversaries/free_linf4.py',
    './_base_/attacks/linf4.py',
]
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        out_indices=[0, 1, 2, 3],
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
        gap_before_final_norm=False,
        frozen_stages=1,
        # Without an adversarially pre-trained backbone the detector will hardly become
        # robust. A classifier has no norm0 to norm2: they belong to the feature levels.
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://huggingface.co/suixin1424/oddefense/resolve/main/'
            'convnext_tiny_mmcls-linf-eps-4-advan.pth',
            fresh=[r'norm[0-3]\.'],
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
# The FPN starts at the second level, so the first level's norm gets no gradient.
find_unused_parameters = True

# A "2x" schedule: 2 * 12 passes, each batch used 4 times, makes 6 passes over the data.
train_cfg = dict(
    type='mmrobust.AdvEpochBasedTrainLoop', max_epochs=6, adversary={{_base_.adversary}}
)
param_scheduler = [
    # 500 updates, as everything that counts iterations here counts updates.
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=6, milestones=[5], gamma=0.1),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(backbone_lr_mult=0.1, bias_lr_mult=2.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=100, norm_type=2),
)

test_cfg = dict(type='mmrobust.AttackTestLoop', attacks={{_base_.attacks}})
default_hooks = dict(
    attack_visualization=dict(type='mmrobust.AttackVisualizationHook'),
)
