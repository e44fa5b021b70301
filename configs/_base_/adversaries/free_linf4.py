# FreeAT as arXiv 2305.17438 trains detectors: 4 replays of each batch, linf radius 4
# (of 255), step = radius. Use with `adversary={{_base_.adversary}}` in train_cfg.
adversary = dict(type='mmrobust.FreeAdversary', norm='linf', eps=4, replays=4)
