# FCOS, ConvNeXt-T, with the preset `paper`: see _base_/paper.py for what the training
# and the attacks take from the published code.
_base_ = ['../robust_fcos_convnext.py', '../_base_/paper.py']

train_cfg = dict(adversary={{_base_.paper_adversary}})
test_cfg = dict(attacks={{_base_.paper_attacks}})
model = dict(bbox_head={{_base_.bounded_focal}})
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        # mmcv's default; in mmengine the rule for biases would hold for norms' too.
        norm_decay_mult=1.0,
        bias_lr_mult=2.0,
        bias_decay_mult=0.0,
        custom_keys={{_base_.backbone_rule}},
    ),
)
