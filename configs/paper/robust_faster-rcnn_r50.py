# Faster R-CNN, ResNet-50, with the preset `paper`: see _base_/paper.py for what the
# training and the attacks take from the published code.
_base_ = ['../robust_faster-rcnn_r50.py', '../_base_/paper.py']

train_cfg = dict(adversary={{_base_.paper_adversary}})
test_cfg = dict(attacks={{_base_.paper_attacks}})
model = dict(roi_head=dict(bbox_head={{_base_.bounded_regions}}))
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        bypass_duplicate=True,
        custom_keys={{_base_.backbone_rule}},
    ),
)
