# ViT-S with its patch stem, linf 4/255, 300 epochs: 69.2 clean and 44.0 under
# AutoAttack in arXiv 2303.01870. Starts from a normally trained classifier.
_base_ = ['./_base_/vit.py', './_base_/heavy_vit.py']

load_from = (
    'https://download.openmmlab.com/mmclassification/v0/deit/'
    'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
)
