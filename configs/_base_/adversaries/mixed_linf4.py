# PGD-AT with 3 steps, linf radius 4 (of 255), whose objective is drawn for each batch
# (arXiv 2602.16494).
adversary = dict(
    type='mmrobust.PGDAdversary',
    norm='linf',
    eps=4,
    num_steps=3,
    objective=dict(name='mixed', of=['total', 'mislabel', 'dag', 'vanish']),
)
