# ViT-B with ConvStem, linf 4/255, 250 epochs: 76.3 clean and 54.7 under AutoAttack
# in arXiv 2303.01870. Run clean_vit-base-convstem.py first.
_base_ = ['./_base_/vit.py', './_base_/heavy_vit.py']

model = dict(
    data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),
    backbone=dict(type='mmrobust.ViTConvStem', arch='base', img_size=224),
    head=dict(in_channels=768),
)
load_from = 'work_dirs/clean_vit-base-convstem/epoch_100.pth'
train_cfg = dict(max_epochs=250)
