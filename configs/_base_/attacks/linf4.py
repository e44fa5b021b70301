# The evaluation of arXiv 2305.17438 on COCO (linf radius 4 of 255, 10 steps of size 1:
# A_cls, A_reg, A_cwa), the total loss beside it, and noise as the sanity baseline. What
# a name stands for is in docs/attacks.md.
attacks = dict(
    noise=dict(type='mmrobust.attack_preset', name='noise', eps=4),
    pgd=dict(type='mmrobust.attack_preset', name='pgd', eps=4, num_steps=10),
    cls=dict(type='mmrobust.attack_preset', name='cls', eps=4),
    reg=dict(type='mmrobust.attack_preset', name='reg', eps=4),
    cwa=dict(type='mmrobust.attack_preset', name='cwa', eps=4),
)
