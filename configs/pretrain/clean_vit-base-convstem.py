# The clean phase of robust_vit-base-convstem.py.
_base_ = './robust_vit-base-convstem.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/deit/'
            'deit-base_pt-16xb64_in1k_20220216-db63c16c.pth',
            fresh=[r'patch_embed\.projection\.'],
        )
    )
)
load_from = None
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=100, val_interval=1)
