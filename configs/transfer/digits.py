# The study in small: digits of 10 x 10 pixels, enlarged, for backbones that have seen
# them in 48 x 48; the backbone is that of the demo's detectors. On images of low
# resolution the paper finds robust backbones ahead (arXiv 2007.08489, granularity).
_base_ = '../pretrain/_base_/digits.py'
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        to_rgb=True,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        zero_init_residual=False,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrobust.CropBox'),
    dict(type='Resize', scale=(10, 10)),
    dict(type='Resize', scale=(48, 48)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(indices=400, pipeline=pipeline),
)
# Rates are chosen on other training images; the test set takes no part in it.
val_dataloader = dict(
    dataset=dict(split='train', indices=list(range(400, 800)), pipeline=pipeline)
)
test_dataloader = dict(dataset=dict(pipeline=pipeline))

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=15, val_interval=15)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [dict(type='MultiStepLR', milestones=[5, 10], gamma=0.1)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=7),
    checkpoint=dict(type='CheckpointHook', interval=5, max_keep_ckpts=2),
)
randomness = dict(seed=0)
