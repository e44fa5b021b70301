# The short version of the recipe: 50 epochs, the learning rate rises over 10.
_base_ = './heavy.py'

train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6,
        by_epoch=True,
        begin=10,
        convert_to_iter_based=True,
    ),
]
