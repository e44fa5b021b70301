# The clean phase of robust_vit-medium-convstem.py.
_base_ = './robust_vit-medium-convstem.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/deit3/'
            'deit3-medium-p16_3rdparty_in1k_20221008-3b21284d.pth',
            fresh=[r'patch_embed\.projection\.'],
        )
    )
)
load_from = None
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=100, val_interval=1)
