# ResNet-18 on CIFAR-10, linf 8/255, with 2 steps of APGD.
_base_ = ['mmpretrain::_base_/models/resnet18_cifar.py', './_base_/cifar10.py']

model = dict(
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=10,
        mean=[125.307, 122.961, 113.8575],
        std=[51.5865, 50.847, 51.255],
        to_rgb=True,
    )
)
train_cfg = dict(
    type='mmrobust.AdvEpochBasedTrainLoop',
    max_epochs=30,
    adversary=dict(type='mmrobust.APGDAdversary', norm='linf', eps=8, num_steps=2),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        by_epoch=True,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=2,
        eta_min=1e-4,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=128)
