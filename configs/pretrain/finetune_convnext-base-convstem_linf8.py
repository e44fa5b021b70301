# To a larger radius, linf 8/255, from the model for 4/255.
_base_ = './finetune_convnext-base-convstem_l2.py'

train_cfg = dict(adversary=dict(norm='linf', eps=8))
