# The small FCOS with FreeAT from the weights of robust_classifier.py, which has to be
# trained first; the backbone changes ten times slower, as in arXiv 2305.17438.
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
optim_wrapper = dict(
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    paramwise_cfg=dict(backbone_lr_mult=0.1),
)
