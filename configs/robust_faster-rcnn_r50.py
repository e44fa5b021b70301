# Faster R-CNN with a ResNet-50 backbone on COCO, made robust as in arXiv 2305.17438:
# adversarially pre-trained backbone, FreeAT, AdamW, backbone learning rate x0.1.
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    './_base_/adversaries/free_linf4.py',
    './_base_/attacks/linf4.py',
    './_base_/schedules/free_2x.py',
]
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)

model = dict(
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
)

train_cfg = dict(
    type='mmrobust.AdvEpochBasedTrainLoop',
    max_epochs={{_base_.free_2x_epochs}},
    adversary={{_base_.adversary}},
)
param_scheduler = {{_base_.free_2x}}
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(
        backbone_lr_mult=0.1, norm_decay_mult=0.0, bypass_duplicate=True
    ),
    clip_grad=dict(max_norm=100, norm_type=2),
)

test_cfg = dict(type='mmrobust.AttackTestLoop', attacks={{_base_.attacks}})
default_hooks = dict(
    attack_visualization=dict(type='mmrobust.AttackVisualizationHook'),
)
