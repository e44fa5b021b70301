# The small FCOS of robust_fcos.py with patches on objects, too, for as many updates.
_base_ = './robust_fcos.py'

train_cfg = dict(
    adversary=dict(
        # A digit is 20 to 50 pixels large: patches of a fifth of that would be of 4.
        type='mmrobust.PBCATAdversary',
        replays=8,
        patch_size=0.3,
    )
)
