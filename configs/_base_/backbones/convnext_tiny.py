# ConvNeXt-T from mmpretrain, as arXiv 2305.17438 uses it. Feature levels of 96, 192,
# 384 and 768 channels; normalisation of ImageNet in RGB. `backbone` gives all levels,
# `backbone_c3_c5` the last three and `backbone_c5` the last, as DETRs take them.
backbone = dict(
    _delete_=True,
    type='mmpretrain.ConvNeXt',
    arch='tiny',
    out_indices=[0, 1, 2, 3],
    drop_path_rate=0.0,
    layer_scale_init_value=1.0,
    gap_before_final_norm=False,
    frozen_stages=1,
    # Without an adversarially pre-trained backbone the detector will hardly become
    # robust. A classifier has no norm0 to norm2: they belong to the feature levels.
    # Its norm3 may count as part of the classifier's head and be left out.
    init_cfg=dict(
        type='mmrobust.PretrainedBackbone',
        checkpoint='https://huggingface.co/suixin1424/oddefense/resolve/main/'
        'convnext_tiny_mmcls-linf-eps-4-advan.pth',
        fresh=[r'norm[0-3]\.'],
    ),
)
backbone_c3_c5 = dict(backbone, out_indices=[1, 2, 3])
backbone_c5 = dict(backbone, out_indices=[3])
