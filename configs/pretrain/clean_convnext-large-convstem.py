# The clean phase of robust_convnext-large-convstem.py.
_base_ = './clean_convnext-tiny-convstem.py'

model = dict(
    backbone=dict(
        arch='large',
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmclassification/v0/convnext/'
            'convnext-large_3rdparty_64xb64_in1k_20220124-f8a0ded0.pth'
        ),
    ),
    head=dict(in_channels=1536),
)
