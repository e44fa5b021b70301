# Deformable DETR with a ConvNeXt-T backbone on COCO, with the recipe of arXiv
# 2305.17438.
_base_ = './robust_deformable-detr_r50.py'

model = dict(
    # As _base_/backbones/convnext_tiny.py, with the levels that the detector uses.
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        out_indices=[1, 2, 3],
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
        gap_before_final_norm=False,
        frozen_stages=1,
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://huggingface.co/suixin1424/oddefense/resolve/main/'
            'convnext_tiny_mmcls-linf-eps-4-advan.pth',
            fresh=[r'norm[0-3]\.'],
        ),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    # LayerNorm keeps its weight decay.
    paramwise_cfg=dict(norm_decay_mult=None),
)
