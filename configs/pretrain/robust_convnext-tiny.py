# ConvNeXt-T with its patch stem, linf 4/255, 300 epochs: 72.4 clean and 48.6 under
# AutoAttack in arXiv 2303.01870. Starts from a normally trained classifier.
_base_ = ['./_base_/convnext_convstem.py', './_base_/heavy.py']

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(type='ConvNeXt'),
)
load_from = (
    'https://download.openmmlab.com/mmclassification/v0/convnext/'
    'convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth'
)
