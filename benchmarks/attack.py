"""Steps of attacks, as an evaluation makes them, against bare passes."""

from __future__ import annotations

from functools import partial

import torch
from mmrobust.attacks import APGD, PGD, Attack
from mmrobust.batch import float_images
from mmrobust.objective import Objective, loss_mode
from mmrobust.objective.classifier import make_oracle
from mmrobust.objective.inputs import Inputs

from benchmarks.passes import gradient
from benchmarks.subject import Subject
from benchmarks.table import Table
from benchmarks.timing import Clock, Side, compare

BARE = 'forward and input-only backward pass'

# An attack step costs at most this many times its passes.
STEP_LIMIT = 1.03

_STEPS = 10


def attack_sections(subject: Subject, clock: Clock, repeats: int) -> list[Table]:
    """Steps of PGD and APGD against bare passes."""
    around = partial(loss_mode, subject.model)
    sides = attack_sides(subject)
    return [compare('Attack, per step', sides, clock, repeats, around)]


def attack_sides(subject: Subject) -> list[Side]:
    """Bare passes, and the same number of steps of PGD and APGD.

    Inside :func:`loss_mode`.
    """
    part, samples = subject.attacked()
    count = len(part['inputs'])

    def bare() -> None:
        images = float_images(part, subject.device)
        # As in an attack, so that the work on samples does not hide what that adds.
        prepare = None if subject.classifier else Inputs(subject.model, part)
        for _ in range(_STEPS):
            gradient(subject, images, samples, prepare=prepare)

    def perturb(attack: Attack) -> None:
        oracle = make_oracle(subject.model, part, samples, Objective())
        images = float_images(part, subject.device)
        attack.perturb(oracle, images, torch.Generator())

    # With the best iterate they would ask for two values more, once per attack.
    attacks = {
        'PGD step': PGD(eps=4, num_steps=_STEPS, keep_best=False),
        'APGD step': APGD(eps=4, num_steps=_STEPS, keep_best=False),
    }
    return [Side(BARE, bare, count, _STEPS)] + [
        Side(name, partial(perturb, attack), count, _STEPS, BARE, STEP_LIMIT)
        for name, attack in attacks.items()
    ]
