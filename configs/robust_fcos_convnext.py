# FCOS with a ConvNeXt-T backbone on COCO, made robust as in arXiv 2305.17438.
_base_ = ['./robust_fcos_r50.py', './_base_/backbones/convnext_tiny.py']

model = dict(backbone={{_base_.backbone}}, neck=dict(in_channels=[96, 192, 384, 768]))
# The FPN starts at the second level, so the first level's norm gets no gradient.
find_unused_parameters = True
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    # Norms keep their weight decay; without a rule for them, their biases would follow
    # that for biases.
    paramwise_cfg=dict(norm_decay_mult=1.0),
)
