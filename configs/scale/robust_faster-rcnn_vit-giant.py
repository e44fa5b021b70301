# Faster R-CNN with ViT-g/14 of AdvXL (arXiv 2401.04727) on COCO, for 8 GPUs.
_base_ = './robust_faster-rcnn_vit-huge.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=1408,
            num_layers=40,
            num_heads=16,
            feedforward_channels=6144,
        ),
        init_cfg=dict(
            checkpoint='https://huggingface.co/UCSC-VLAA/AdvXL-ViT-g14/resolve/main/'
            'advxl_vit_g14.pth',
        ),
    ),
    neck=dict(in_channels=[1408]),
)
