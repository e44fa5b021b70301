# To l1 with radius 75 (in [0, 1]), from the linf model.
_base_ = './finetune_convnext-base-convstem_l2.py'

train_cfg = dict(adversary=dict(norm='l1', eps=19125))
