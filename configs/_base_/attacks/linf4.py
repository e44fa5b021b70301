# The evaluation of arXiv 2305.17438 on COCO (linf radius 4 of 255, 10 steps of size 1:
# A_cls, A_reg, A_cwa), the total loss beside it, and noise as the sanity baseline.
attacks = dict(
    noise=dict(type='mmrobust.RandomNoise', eps=4),
    pgd=dict(type='mmrobust.PGD', eps=4, step_size=1, num_steps=10),
    cls=dict(
        type='mmrobust.PGD',
        eps=4,
        step_size=1,
        num_steps=10,
        objective='cls',
        random_start=False,
    ),
    reg=dict(
        type='mmrobust.PGD',
        eps=4,
        step_size=1,
        num_steps=10,
        objective='reg',
        random_start=False,
    ),
    cwa=dict(
        type='mmrobust.PGD',
        eps=4,
        step_size=1,
        num_steps=10,
        objective='cwa',
        random_start=False,
    ),
)
