# A ConvNeXt-T with ConvStem as a classifier. Its published weights take images in
# [0, 1] without a normalisation.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        to_rgb=True,
    ),
    backbone=dict(type='mmrobust.ConvNeXtConvStem', arch='tiny'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        # 'original' smooths mixed labels too.
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    init_cfg=dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0),
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    ),
)
