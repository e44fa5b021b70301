# Faster R-CNN with a ConvNeXt-T-ConvStem backbone on PASCAL VOC, linf radius 8 as is
# customary there; otherwise as on COCO.
_base_ = [
    './robust_faster-rcnn_convnext-convstem.py',
    './_base_/datasets/voc0712.py',
    './_base_/attacks/linf8.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))
data_root = {{_base_.voc_root}}
train_dataloader = {{_base_.voc_train}}
val_dataloader = {{_base_.voc_val}}
test_dataloader = {{_base_.voc_test}}
val_evaluator = {{_base_.voc_val_metric}}
test_evaluator = {{_base_.voc_metric}}
train_cfg = dict(adversary=dict(eps=8))
test_cfg = dict(attacks={{_base_.linf8_attacks}})
