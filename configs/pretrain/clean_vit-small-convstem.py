# The clean phase of robust_vit-small-convstem.py.
_base_ = './robust_vit-small-convstem.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/deit/'
            'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth',
            fresh=[r'patch_embed\.projection\.'],
        )
    )
)
load_from = None
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=100, val_interval=1)
