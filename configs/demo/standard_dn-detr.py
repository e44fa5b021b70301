# A small DN-DETR on handwritten digits, trained normally.
_base_ = './_base_/digits.py'

channels = 64
num_heads = 4
model = dict(
    type='mmrobust.DNDETR',
    num_queries=20,
    data_preprocessor={{_base_.data_preprocessor}},
    # One level, 12 x 12.
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 1),
        dilations=(1, 1, 1),
        out_indices=(2,),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(type='Kaiming', layer='Conv2d'),
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[128],
        kernel_size=1,
        out_channels=channels,
        act_cfg=None,
        norm_cfg=None,
        num_outs=1,
    ),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=channels, num_heads=num_heads, dropout=0.0),
            ffn_cfg=dict(
                embed_dims=channels,
                feedforward_channels=256,
                ffn_drop=0.0,
                act_cfg=dict(type='PReLU'),
            ),
        ),
    ),
    decoder=dict(
        num_layers=3,
        query_dim=4,
        query_scale_type='cond_elewise',
        with_modulated_hw_attn=True,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=channels, num_heads=num_heads, cross_attn=False
            ),
            cross_attn_cfg=dict(
                embed_dims=channels, num_heads=num_heads, cross_attn=True
            ),
            ffn_cfg=dict(
                embed_dims=channels,
                feedforward_channels=256,
                ffn_drop=0.0,
                act_cfg=dict(type='PReLU'),
            ),
        ),
        return_intermediate=True,
    ),
    positional_encoding=dict(num_feats=channels // 2, temperature=10, normalize=True),
    bbox_head=dict(
        type='mmrobust.DNDETRHead',
        num_classes=10,
        embed_dims=channels,
        loss_cls=dict(
            type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0
        ),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.3,
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=False, num_groups=5),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0, eps=1e-8),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=20),
)
