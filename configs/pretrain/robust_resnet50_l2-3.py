# ResNet-50, l2 with radius 3 (in [0, 1]): 62.83 clean in arXiv 2007.08489.
_base_ = './_base_/madry.py'

train_cfg = dict(adversary=dict(norm='l2', eps=765, step_size=510))
