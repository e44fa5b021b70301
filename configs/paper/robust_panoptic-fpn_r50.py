# Panoptic FPN, ResNet-50, with the preset `paper`. Unlike for detectors, the published
# perturbation follows the total loss there. See _base_/paper.py for the rest; beside
# that:
_base_ = ['../robust_panoptic-fpn_r50.py', '../_base_/paper.py']

train_cfg = dict(adversary=dict(carry='run'))
# The published evaluation attacks the classification of regions alone.
test_cfg = dict(attacks=dict(_delete_=True, cls={{_base_.paper_attacks.cls}}))
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
