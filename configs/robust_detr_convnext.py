# DETR with a ConvNeXt-T backbone on COCO, with the recipe of arXiv 2305.17438.
_base_ = ['./robust_detr_r50.py', './_base_/backbones/convnext_tiny.py']

model = dict(backbone={{_base_.backbone_c5}}, neck=dict(in_channels=[768]))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    # LayerNorm keeps its weight decay.
    paramwise_cfg=dict(norm_decay_mult=None),
)
