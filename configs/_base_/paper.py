# The preset `paper`: where the published code of arXiv 2305.17438 differs from this
# project's defaults. Used by configs/paper/.
#
# The perturbation follows the head's classification and box losses alone (a second
# backward pass), and is carried from the first batch of the run to the last.
paper_adversary = dict(objective='cls+reg', carry='run')
# The last iterate counts, not the best one.
paper_attacks = dict(
    _delete_=True,
    cls=dict(
        type='mmrobust.PGD',
        eps=4,
        step_size=1,
        num_steps=10,
        objective='cls',
        random_start=False,
        keep_best=False,
    ),
    reg=dict(
        type='mmrobust.PGD',
        eps=4,
        step_size=1,
        num_steps=10,
        objective='reg',
        random_start=False,
        keep_best=False,
    ),
    cwa=dict(
        type='mmrobust.PGD',
        eps=4,
        step_size=1,
        num_steps=10,
        objective='cwa',
        random_start=False,
        keep_best=False,
    ),
)
