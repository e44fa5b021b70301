# The phase before adversarial training: the fresh ConvStem on a trained ConvNeXt-T
# learns from clean, heavily augmented images for 100 epochs.
_base_ = ['./_base_/convnext_convstem.py', './_base_/heavy.py']

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='mmrobust.PretrainedBackbone',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/convnext/'
            'convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth',
            fresh=[r'downsample_layers\.0\.'],
        )
    )
)
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=100, val_interval=1)
