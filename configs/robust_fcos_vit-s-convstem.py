# FCOS with a ViT-S-ConvStem backbone on COCO: the recipe of arXiv 2305.17438 on the
# backbone of arXiv 2303.01870.
_base_ = ['./robust_fcos_r50.py', './_base_/backbones/vit_small_convstem.py']

model = dict(
    data_preprocessor={{_base_.vit_data_preprocessor}},
    backbone={{_base_.vit_backbone}},
    neck={{_base_.vit_neck}},
)
# As the backbone's own training, where neither norms nor biases decay.
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
