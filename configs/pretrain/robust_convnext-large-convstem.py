# ConvNeXt-L with ConvStem, linf 4/255, 100 epochs: 77.0 clean and 57.7 under AutoAttack
# in arXiv 2303.01870. Run clean_convnext-large-convstem.py first.
_base_ = ['./_base_/convnext_convstem.py', './_base_/heavy_50e.py']

model = dict(backbone=dict(arch='large'), head=dict(in_channels=1536))
train_cfg = dict(max_epochs=100)
load_from = 'work_dirs/clean_convnext-large-convstem/epoch_100.pth'
