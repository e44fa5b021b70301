# As linf4.py with the radius that is customary on PASCAL VOC: linf 8 (of 255), step 2.
linf8_attacks = dict(
    noise=dict(type='mmrobust.RandomNoise', eps=8),
    pgd=dict(type='mmrobust.PGD', eps=8, step_size=2, num_steps=10),
    cls=dict(
        type='mmrobust.PGD',
        eps=8,
        step_size=2,
        num_steps=10,
        objective='cls',
        random_start=False,
    ),
    reg=dict(
        type='mmrobust.PGD',
        eps=8,
        step_size=2,
        num_steps=10,
        objective='reg',
        random_start=False,
    ),
    cwa=dict(
        type='mmrobust.PGD',
        eps=8,
        step_size=2,
        num_steps=10,
        objective='cwa',
        random_start=False,
    ),
)
