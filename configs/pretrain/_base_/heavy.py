# The recipe of arXiv 2303.01870 (App. A and its code): adversarial training with 2
# steps of APGD on heavily augmented ImageNet, from a normally trained model, 8 x 80
# images.
_base_ = [
    # RandomResizedCrop, RandAugment m9-mstd0.5-inc1, RandomErasing 0.25; bicubic.
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)

train_dataloader = dict(batch_size=80)
train_cfg = dict(
    type='mmrobust.AdvEpochBasedTrainLoop',
    max_epochs=300,
    adversary=dict(type='mmrobust.APGDAdversary', norm='linf', eps=4, num_steps=2),
)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',  # the paper trains with --amp
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    # Of a ConvNeXt, all but biases decays, norms and layer scales too.
    paramwise_cfg=dict(custom_keys={'.bias': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6,
        by_epoch=True,
        begin=20,
        convert_to_iter_based=True,
    ),
]
# For trainings of at most 100 epochs.
short_schedule = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6,
        by_epoch=True,
        begin=10,
        convert_to_iter_based=True,
    ),
]
# Checkpoints hold the averaged weights; they are what is published and evaluated.
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=640)
