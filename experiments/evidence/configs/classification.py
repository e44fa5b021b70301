# The upstream task: pictures about as large as the objects that detectors get. run.py
# sets data, backbone, adversary and length.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)

size = 40
model = dict(
    type='ImageClassifier',
    # As the detectors' preprocessor, so that the weights fit.
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=10,
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        to_rgb=True,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
light = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(size, size)),
    dict(type='RandomCrop', crop_size=size, padding=5, padding_mode='reflect'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
# The augmentation of arXiv 2303.01870, with MixUp and CutMix below.
heavy = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.25, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[127, 127, 127]),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=[127.5, 127.5, 127.5],
        fill_std=[64.0, 64.0, 64.0],
    ),
    dict(type='PackInputs'),
]
heavy_model = dict(
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    )
)
# models.py sets the momentum by the length.
heavy_hooks = [
    dict(
        type='EMAHook',
        momentum=0.01,
        update_buffers=True,
        priority='ABOVE_NORMAL',
    )
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(size, size)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', pipeline=light),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', test_mode=True, pipeline=test_pipeline),
)
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()

train_cfg = dict(type='mmrobust.AdvIterBasedTrainLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10, norm_type=2),
)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=200, max_keep_ckpts=1
    ),
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
visualizer = dict(type='UniversalVisualizer')
