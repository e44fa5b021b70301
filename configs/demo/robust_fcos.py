# The small FCOS of standard_fcos.py with FreeAT, for the same number of updates: every
# batch is used for 2 of them, so the detector sees half of the batches. With 4, as in
# the paper, it learns less from scratch in this time.
_base_ = './standard_fcos.py'

train_cfg = dict(
    type='mmrobust.AdvIterBasedTrainLoop',
    # From scratch, digits are learnt sooner while eps still grows.
    adversary=dict(
        type='mmrobust.FreeAdversary',
        eps=8,
        replays=2,
        carry='run',
        warmup_iters=600,
    ),
)
