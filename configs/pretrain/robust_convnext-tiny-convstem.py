# ConvNeXt-T with ConvStem, linf 4/255, 300 epochs: 72.7 clean and 49.5 under AutoAttack
# in arXiv 2303.01870. Run clean_convnext-tiny-convstem.py first.
_base_ = ['./_base_/convnext_convstem.py', './_base_/heavy.py']

load_from = 'work_dirs/clean_convnext-tiny-convstem/epoch_100.pth'
