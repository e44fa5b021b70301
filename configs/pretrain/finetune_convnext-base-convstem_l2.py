# To l2 with radius 2 (in [0, 1]), from the linf model: 20 epochs, as in the code of
# arXiv 2303.01870. Other norms and radii: change norm and eps.
_base_ = './robust_convnext-base-convstem.py'

load_from = 'work_dirs/robust_convnext-base-convstem/epoch_250.pth'
train_cfg = dict(max_epochs=20, adversary=dict(norm='l2', eps=510))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6,
        by_epoch=True,
        begin=5,
        convert_to_iter_based=True,
    ),
]
