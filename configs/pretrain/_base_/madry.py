# Robust ImageNet training as for the models of arXiv 2007.08489: SGD, 90 epochs, PGD
# of 3 steps of 2/3 eps from the clean image, keeping the best.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmrobust'], allow_failed_imports=False)

train_cfg = dict(
    _delete_=True,
    type='mmrobust.AdvEpochBasedTrainLoop',
    max_epochs=90,
    adversary=dict(
        type='mmrobust.PGDAdversary',
        norm='linf',
        eps=4,
        num_steps=3,
        random_start=False,
        keep_best=True,
    ),
)
param_scheduler = dict(milestones=[30, 60])
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
