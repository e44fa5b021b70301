# The clean phase of robust_convnext-isotropic-convstem.py. mmpretrain has no isotropic
# ConvNeXt: the weights are those of arXiv 2201.03545's own repository.
_base_ = './robust_convnext-isotropic-convstem.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://dl.fbaipublicfiles.com/convnext/'
            'convnext_iso_small_1k_224_ema.pth',
            fresh=[r'downsample_layers\.0\.'],
        )
    )
)
load_from = None
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=100, val_interval=1)
