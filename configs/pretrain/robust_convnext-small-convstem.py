# ConvNeXt-S with ConvStem, linf 4/255, 50 epochs: 74.1 clean and 52.4 under AutoAttack
# in arXiv 2303.01870. Run clean_convnext-small-convstem.py first.
_base_ = ['./_base_/convnext_convstem.py', './_base_/heavy_50e.py']

model = dict(backbone=dict(arch='small'), head=dict(in_channels=768))
load_from = 'work_dirs/clean_convnext-small-convstem/epoch_100.pth'
