# DN-DETR with a ResNet-50 backbone on COCO, made robust as in arXiv 2305.17438:
# adversarially pre-trained backbone, FreeAT, AdamW, and the backbone's learning rate,
# which in DETRs is a tenth already, x0.1.
_base_ = [
    'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    './_base_/adversaries/free_linf4.py',
    './_base_/attacks/linf4.py',
]
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)

model = dict(
    type='mmrobust.DNDETR',
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        # Without an adversarially pre-trained backbone the detector will hardly become
        # robust.
        init_cfg=dict(
            _delete_=True,
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://huggingface.co/suixin1424/oddefense/resolve/main/'
            'resnet50_linf_eps4_pure.pth',
        ),
    ),
    positional_encoding=dict(temperature=10),
    bbox_head=dict(type='mmrobust.DNDETRHead'),
    dn_cfg=dict(
        label_noise_scale=0.3,
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=False, num_groups=5),
    ),
)

# One size of images, as for the other detectors of the paper.
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# A "2x" schedule: 2 * 12 passes, each batch used 4 times, makes 6 passes over the data.
max_epochs = 6
train_cfg = dict(
    type='mmrobust.AdvEpochBasedTrainLoop',
    max_epochs=max_epochs,
    adversary={{_base_.adversary}},
)
param_scheduler = [
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        milestones=[5],
        gamma=0.1,
    ),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(
        backbone_lr_mult=0.01, norm_decay_mult=0.0, bypass_duplicate=True
    ),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)

test_cfg = dict(type='mmrobust.AttackTestLoop', attacks={{_base_.attacks}})
default_hooks = dict(
    attack_visualization=dict(type='mmrobust.AttackVisualizationHook'),
)
