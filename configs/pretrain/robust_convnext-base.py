# ConvNeXt-B with its patch stem, linf 4/255, 50 epochs: 75.6 clean and 54.3 under
# AutoAttack in the repository of arXiv 2303.01870. Starts from a normally trained
# classifier.
_base_ = ['./_base_/convnext_convstem.py', './_base_/heavy_50e.py']

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(type='ConvNeXt', arch='base'),
    head=dict(in_channels=1024),
)
load_from = (
    'https://download.openmmlab.com/mmclassification/v0/convnext/'
    'convnext-base_3rdparty_32xb128_in1k_20220124-d0915162.pth'
)
