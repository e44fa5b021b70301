# Faster R-CNN with Swin-L of ARES (arXiv 2302.14301) on COCO, for 8 GPUs: bfloat16 and
# checkpointed activations. docs/scale.md says what it takes.
_base_ = './robust_faster-rcnn_convnext-large.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrobust.SwinTransformer',
        embed_dims=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=7,
        out_indices=[0, 1, 2, 3],
        drop_path_rate=0.0,
        frozen_stages=1,
        with_cp=True,
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://ml.cs.tsinghua.edu.cn/~xiaoyang/aresbench/'
            'ckpt-imagenet/ARES_Swin_large_patch4_window7_224_AT.pth',
            fresh=[r'norm[0-3]\.'],
        ),
    ),
)
