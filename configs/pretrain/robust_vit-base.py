# ViT-B with its patch stem, linf 4/255, 50 epochs: 73.3 clean and 50.0 under AutoAttack
# in the repository of arXiv 2303.01870. Starts from a normally trained classifier.
_base_ = ['./_base_/vit.py', './_base_/heavy_vit.py']

model = dict(backbone=dict(arch='deit-base'), head=dict(in_channels=768))
load_from = (
    'https://download.openmmlab.com/mmclassification/v0/deit/'
    'deit-base_pt-16xb64_in1k_20220216-db63c16c.pth'
)
train_cfg = dict(max_epochs=50)
param_scheduler = {{_base_.short_schedule}}
