# DN-DETR with a ResNet-50 backbone on PASCAL VOC, linf radius 8 as is customary there;
# otherwise as on COCO.
_base_ = [
    './robust_dn-detr_r50.py',
    './_base_/datasets/voc0712.py',
    './_base_/attacks/linf8.py',
]

model = dict(bbox_head=dict(num_classes=20))
data_root = {{_base_.voc_root}}
train_dataloader = {{_base_.voc_train}}
val_dataloader = {{_base_.voc_val}}
test_dataloader = {{_base_.voc_test}}
val_evaluator = {{_base_.voc_val_metric}}
test_evaluator = {{_base_.voc_metric}}
train_cfg = dict(adversary=dict(eps=8))
test_cfg = dict(attacks={{_base_.linf8_attacks}})
