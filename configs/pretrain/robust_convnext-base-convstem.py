# ConvNeXt-B with ConvStem, linf 4/255, 250 epochs: 75.9 clean and 56.1 under AutoAttack
# in arXiv 2303.01870. Run clean_convnext-base-convstem.py first.
_base_ = ['./_base_/convnext_convstem.py', './_base_/heavy.py']

model = dict(backbone=dict(arch='base'), head=dict(in_channels=1024))
train_cfg = dict(max_epochs=250)
load_from = 'work_dirs/clean_convnext-base-convstem/epoch_100.pth'
