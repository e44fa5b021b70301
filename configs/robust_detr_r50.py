# DETR with a ResNet-50 backbone on COCO, with the recipe of arXiv 2305.17438. The
# schedule is twice as many updates as that of the standard detector: 75 passes, each
# batch used 4 times.
_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    './_base_/adversaries/free_linf4.py',
    './_base_/attacks/linf4.py',
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

max_epochs = 75
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
        milestones=[50],
        gamma=0.1,
    ),
]
optim_wrapper = dict(
    # What a DETR does to the backbone's learning rate (x0.1) stays; this multiplies it.
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    optimizer=dict(weight_decay=0.1),
    paramwise_cfg=dict(backbone_lr_mult=0.1, norm_decay_mult=0.0),
)

# Without this key --auto-scale-lr is refused.
auto_scale_lr = dict(enable=False)
test_cfg = dict(type='mmrobust.AttackTestLoop', attacks={{_base_.attacks}})
default_hooks = dict(
    attack_visualization=dict(type='mmrobust.AttackVisualizationHook'),
)
