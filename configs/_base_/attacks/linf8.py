# As linf4.py with the radius that is customary on PASCAL VOC: linf 8 (of 255), step 2.
linf8_attacks = dict(
    noise=dict(type='mmrobust.attack_preset', name='noise', eps=8),
    pgd=dict(type='mmrobust.attack_preset', name='pgd', eps=8, num_steps=10),
    cls=dict(type='mmrobust.attack_preset', name='cls', eps=8),
    reg=dict(type='mmrobust.attack_preset', name='reg', eps=8),
    cwa=dict(type='mmrobust.attack_preset', name='cwa', eps=8),
)
