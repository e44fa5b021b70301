# ResNet-18, else as resnet50.py.
_base_ = './resnet50.py'
model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
