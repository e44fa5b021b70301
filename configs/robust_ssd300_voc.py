# SSD300 (VGG-16) on PASCAL VOC, linf radius 8: the detector of earlier defences, which
# arXiv 2305.17438 evaluates again. No adversarially pre-trained VGG-16 is published, so
# the backbone starts from the usual weights.
_base_ = [
    'mmdet::pascal_voc/ssd300_voc0712.py',
    './_base_/attacks/linf8.py',
    './_base_/schedules/free_2x.py',
]
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)

# mmdet's own SSDHead cannot predict in mmdet 3.3.
model = dict(bbox_head=dict(type='mmrobust.SSDHead'))

# 6 passes over the training set, which mmdet repeats 10 times, are as many updates as
# those of the standard detector: 24 passes.
train_cfg = dict(
    type='mmrobust.AdvEpochBasedTrainLoop',
    max_epochs={{_base_.free_2x_epochs}},
    adversary=dict(type='mmrobust.FreeAdversary', norm='linf', eps=8, replays=4),
)
param_scheduler = {{_base_.free_2x}}
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(backbone_lr_mult=0.1),
    clip_grad=dict(max_norm=100, norm_type=2),
)

test_cfg = dict(type='mmrobust.AttackTestLoop', attacks={{_base_.linf8_attacks}})
default_hooks = dict(
    attack_visualization=dict(type='mmrobust.AttackVisualizationHook'),
)
