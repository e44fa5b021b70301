# Faster R-CNN with ViT-H/14 of AdvXL (arXiv 2401.04727) on COCO, for 8 GPUs: bfloat16,
# weights shared out by FSDP, activations of layers computed again in the backward pass.
# docs/scale.md says what it takes.
_base_ = '../robust_faster-rcnn_r50.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='huge',
        # The file's patches are of 14 x 14 pixels; positions are fitted to each batch.
        img_size=384,
        patch_size=16,
        final_norm=False,
        out_type='featmap',
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://huggingface.co/UCSC-VLAA/AdvXL-ViT-H14/resolve/main/'
            'advxl_vit_h14.pth',
        ),
    ),
    # ViTDet's (arXiv 2203.16527); the rest, such as the number of levels, is the FPN's.
    neck=dict(type='mmrobust.SimpleFeaturePyramid', in_channels=[1280]),
)
optim_wrapper = dict(
    type='mmrobust.BFloat16OptimWrapper',
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0),
)
# Of attacks before an update (PGD-AT), which has its own.
train_cfg = dict(speed=dict(autocast='bfloat16'))

runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmrobust.FSDPStrategy', blocks=['TransformerEncoderLayer'], recompute=True
)
