# ViT-S with the ConvStem of arXiv 2303.01870, and the neck of ViTDet, arXiv 2203.16527,
# which makes the levels of mmdet's FPN of the backbone's only map. The weights are to
# be had from the authors of the former (github.com/nmndeep/revisiting-at) and have to
# lie in the file named here, as published or converted.
vit_backbone = dict(
    _delete_=True,
    type='mmrobust.ViTConvStem',
    arch='small',
    # Position embeddings of 14 x 14, as in the file, are interpolated for each batch.
    img_size=224,
    out_type='featmap',
    drop_path_rate=0.0,
    # The stem, the embeddings and a sixth of the layers, as with ConvNeXt-T.
    frozen_stages=2,
    # Without an adversarially pre-trained backbone the detector will hardly become
    # robust.
    init_cfg=dict(
        type='mmrobust.PretrainedBackbone',
        checkpoint='checkpoints/vit_small_convstem_linf4.pth',
    ),
)
# The rest, such as the number of levels, is the FPN's.
vit_neck = dict(type='mmrobust.SimpleFeaturePyramid', in_channels=[384])
# Unlike the stem's other weights, which take images in [0, 1], this file holds a mean
# and std of its own: (0.484952, 0.456, 0.405989) and ImageNet's, times 255 here.
vit_data_preprocessor = dict(
    mean=[123.66276, 116.28, 103.527195], std=[58.395, 57.12, 57.375]
)
