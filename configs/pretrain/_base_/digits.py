# The demo's digits as a classification set (made on first use, see mmrobust.datasets):
# pictures of 48 x 48 pixels, about the size that digits have in the demo's detectors.
size = 48
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrobust.CropBox'),
    dict(type='Resize', scale=(size, size)),
    dict(type='PackInputs'),
]
test_pipeline = train_pipeline
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmrobust.DigitCropsDataset', split='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmrobust.DigitCropsDataset', split='val', pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
