# DN-DETR, ConvNeXt-T, with the preset `paper`: see _base_/paper.py for what the
# training and the attacks take from the published code. Its losses are not bounded.
_base_ = ['../robust_dn-detr_convnext.py', '../_base_/paper.py']

train_cfg = dict(adversary={{_base_.paper_adversary}})
test_cfg = dict(attacks={{_base_.paper_attacks}})
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys=dict(backbone=dict(lr_mult=0.01, decay_mult=1.0)),
    ),
)
