# ResNet-50, linf 4/255: 63.86 clean in arXiv 2007.08489.
_base_ = './_base_/madry.py'

train_cfg = dict(adversary=dict(eps=4, step_size='8/765'))
