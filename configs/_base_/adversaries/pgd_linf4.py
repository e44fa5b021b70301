# PGD-AT with 3 steps, linf radius 4 (of 255). Allows gradient accumulation.
adversary = dict(type='mmrobust.PGDAdversary', norm='linf', eps=4, num_steps=3)
