# Fast AT (arXiv 2001.03994), linf radius 4 (of 255): a random start and one step of
# 1.25 times the radius.
adversary = dict(
    type='mmrobust.PGDAdversary', norm='linf', eps=4, step_size=5, num_steps=1
)
