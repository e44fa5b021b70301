# FCOS, ConvNeXt-T, with the preset `paper`: see _base_/paper.py for what the training
# and the attacks take from the published code. Beside that:
_base_ = ['../robust_fcos_convnext.py', '../_base_/paper.py']

train_cfg = dict(adversary={{_base_.paper_adversary}})
test_cfg = dict(attacks={{_base_.paper_attacks}})
# - each element of the classification loss is bounded at 6 (in training; the published
#   evaluation attacks the bounded loss, which overstates robustness);
model = dict(
    bbox_head=dict(
        loss_cls=dict(type='mmrobust.BoundedLoss', loss='FocalLoss', bound=6)
    )
)
# - the rule for the backbone switches off all other rules inside it.
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        # mmcv's default; in mmengine the rule for biases would hold for norms' too.
        norm_decay_mult=1.0,
        bias_lr_mult=2.0,
        bias_decay_mult=0.0,
        custom_keys=dict(backbone=dict(lr_mult=0.1, decay_mult=1.0)),
    ),
)
