# ResNet-18, linf 4/255: 52.49 clean in arXiv 2007.08489.
_base_ = './robust_resnet50_linf4.py'

model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
