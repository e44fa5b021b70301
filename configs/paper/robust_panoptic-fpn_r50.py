# Panoptic FPN, ResNet-50, with the preset `paper`. Unlike for detectors, the published
# perturbation follows the total loss there. See _base_/paper.py for the rest; beside
# that:
_base_ = ['../robust_panoptic-fpn_r50.py', '../_base_/paper.py']

train_cfg = dict(adversary=dict(carry='run'))
# The published evaluation attacks the classification of regions alone.
test_cfg = dict(attacks=dict(_delete_=True, cls={{_base_.paper_attacks.cls}}))
# - each sampled region's losses are bounded at 6 (in training; the published evaluation
#   attacks the bounded loss, which overstates robustness);
model = dict(
    roi_head=dict(
        bbox_head=dict(
            loss_cls=dict(
                type='mmrobust.BoundedLoss', loss='CrossEntropyLoss', bound=6
            ),
            loss_bbox=dict(
                type='mmrobust.BoundedLoss', loss='L1Loss', bound=6, per='row'
            ),
        )
    )
)
# - the rule for the backbone switches off all other rules inside it.
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        bypass_duplicate=True,
        custom_keys=dict(backbone=dict(lr_mult=0.1, decay_mult=1.0)),
    ),
)
