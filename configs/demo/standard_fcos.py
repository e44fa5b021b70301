# A small FCOS on handwritten digits, trained normally: the control of robust_fcos.py.
_base_ = './_base_/digits.py'

model = dict(
    type='FCOS',
    data_preprocessor={{_base_.data_preprocessor}},
    backbone={{_base_.backbone}},
    neck={{_base_.neck}},
    bbox_head=dict(
        type='FCOSHead',
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[8, 16],
        # Digits are 18 to 48 pixels high.
        regress_ranges=((-1, 24), (24, 1e8)),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        # Telling ten digits apart is what takes the updates.
        loss_cls=dict(
            type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
        ),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=200,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=50,
    ),
)

# It learns as much in as many updates as with 16, in less time.
train_dataloader = dict(batch_size=12)
# Small images of one size: what they find is the same up to rounding.
test_cfg = dict(attack_batch_size=10)
