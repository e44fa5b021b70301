# Faster R-CNN with a ViT-S-ConvStem backbone on COCO: the recipe of arXiv 2305.17438 on
# the backbone of arXiv 2303.01870.
_base_ = ['./robust_faster-rcnn_r50.py', './_base_/backbones/vit_small_convstem.py']

model = dict(
    data_preprocessor={{_base_.vit_data_preprocessor}},
    backbone={{_base_.vit_backbone}},
    neck={{_base_.vit_neck}},
)
# As the backbone's own training: nothing of one dimension decays.
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05), paramwise_cfg=dict(bias_decay_mult=0.0)
)
