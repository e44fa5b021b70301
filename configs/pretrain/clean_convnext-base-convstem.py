# The clean phase of robust_convnext-base-convstem.py.
_base_ = './clean_convnext-tiny-convstem.py'

model = dict(
    backbone=dict(
        arch='base',
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/convnext/'
            'convnext-base_3rdparty_32xb128_in1k_20220124-d0915162.pth'
        ),
    ),
    head=dict(in_channels=1024),
)
