# The clean phase of robust_convnext-small-convstem.py.
_base_ = './clean_convnext-tiny-convstem.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/convnext/'
            'convnext-small_32xb128_in1k_20221207-4ab7052c.pth'
        ),
    ),
    head=dict(in_channels=768),
)
