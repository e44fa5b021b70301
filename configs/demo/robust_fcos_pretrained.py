# The small FCOS with FreeAT for half as many updates, from the weights of
# robust_classifier.py, which has to be trained first. The backbone changes ten times
# slower and a batch is used 4 times, as in arXiv 2305.17438.
_base_ = './robust_fcos.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='mmrobust.PretrainedBackbone',
            checkpoint='work_dirs/robust_classifier/iter_400.pth',
        )
    )
)
train_dataloader = dict(batch_size=16)
num_updates = 600
train_cfg = dict(
    max_iters=num_updates,
    val_interval=num_updates,
    adversary=dict(replays=4, warmup_iters=100),
)
optim_wrapper = dict(
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    paramwise_cfg=dict(backbone_lr_mult=0.1),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=50,
        end=num_updates,
        eta_min=1e-5,
    ),
]
