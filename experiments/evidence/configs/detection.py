# The downstream task: what replaces data, loop and hooks of the demo's detectors.
# run.py sets data, weights, adversary, optimizer and length. Images are reduced to the
# size that the demo's anchors and ranges are made for.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='CocoDataset', pipeline=train_pipeline),
)
test_dataloader = dict(
    _delete_=True,
    batch_size=10,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', test_mode=True, pipeline=test_pipeline),
)
test_evaluator = dict(_delete_=True, type='CocoMetric', metric='bbox')
val_dataloader = None
val_evaluator = None
val_cfg = None

train_cfg = dict(_delete_=True, type='mmrobust.AdvIterBasedTrainLoop')
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, backbone_lr_mult=0.1),
    clip_grad=dict(max_norm=10, norm_type=2),
)
test_cfg = dict(_delete_=True, type='mmrobust.AttackTestLoop')
default_hooks = dict(
    _delete_=True,
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=200, max_keep_ckpts=1
    ),
)
visualizer = dict(_delete_=True, type='DetLocalVisualizer')
