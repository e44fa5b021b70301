# ViT-S with ConvStem, linf 4/255, 300 epochs: 72.5 clean and 48.1 under AutoAttack
# in arXiv 2303.01870. Run clean_vit-small-convstem.py first.
_base_ = ['./_base_/vit.py', './_base_/heavy_vit.py']

model = dict(
    backbone=dict(type='mmrobust.ViTConvStem', arch='small', img_size=224),
)
load_from = 'work_dirs/clean_vit-small-convstem/epoch_100.pth'
