# Faster R-CNN with the vision tower of CLIP ViT-L/14, made robust by FARE (arXiv
# 2402.12336), on COCO, for 8 GPUs.
_base_ = './robust_faster-rcnn_vit-huge.py'

model = dict(
    data_preprocessor=dict(
        mean=[122.7709, 116.746, 104.0937],
        std=[68.5005, 66.6322, 70.3232],
    ),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='large',
        img_size=256,
        patch_size=16,
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
        out_type='featmap',
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://nc.mlcloud.uni-tuebingen.de/index.php/s/'
            'jnQ2qmp9tst8kyQ/download/fare_eps_4.pt',
        ),
    ),
    neck=dict(in_channels=[1024]),
)
