# ViT-M with ConvStem, linf 4/255, 50 epochs: 72.4 clean and 48.8 under AutoAttack
# in arXiv 2303.01870. Run clean_vit-medium-convstem.py first.
_base_ = ['./_base_/vit.py', './_base_/heavy_vit.py']

model = dict(
    backbone=dict(type='mmrobust.DeiT3ConvStem', arch='medium', img_size=224),
    head=dict(in_channels=512),
)
load_from = 'work_dirs/clean_vit-medium-convstem/epoch_100.pth'
train_cfg = dict(max_epochs=50)
param_scheduler = {{_base_.short_schedule}}
