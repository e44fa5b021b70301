# CWAT (Chen et al., CVPR 2021), linf radius 4 (of 255), fast version: one step, losses
# weighted class by class.
adversary = dict(type='mmrobust.CWATAdversary', norm='linf', eps=4)
