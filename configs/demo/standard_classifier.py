# The classifier of robust_classifier.py, trained normally: the control.
_base_ = './robust_classifier.py'

train_cfg = dict(adversary=dict(_delete_=True, type='mmrobust.NoAdversary'))
