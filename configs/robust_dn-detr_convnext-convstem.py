# DN-DETR with a ConvNeXt-T-ConvStem backbone on COCO: the recipe of arXiv 2305.17438 on
# the backbone of arXiv 2303.01870.
_base_ = [
    './robust_dn-detr_convnext.py',
    './_base_/backbones/convnext_tiny_convstem.py',
]

model = dict(
    data_preprocessor={{_base_.convstem_data_preprocessor}},
    backbone={{_base_.convstem_backbone}},
)
