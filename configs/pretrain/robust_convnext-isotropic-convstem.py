# Isotropic ConvNeXt-S with ConvStem, linf 4/255, 300 epochs: 70.2 clean and 45.9 under
# AutoAttack in arXiv 2303.01870. Run clean_convnext-isotropic-convstem.py first.
_base_ = ['./_base_/convnext_convstem.py', './_base_/heavy.py']

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(_delete_=True, type='mmrobust.ConvNeXtIsotropic', convstem=True),
    head=dict(in_channels=384),
)
load_from = 'work_dirs/clean_convnext-isotropic-convstem/epoch_100.pth'
