"""Updates of the training methods against stock updates and against bare passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmrobust.batch import with_images
from mmrobust.objective import Objective, loss_mode
from mmrobust.training import (
    Adversary,
    APGDAdversary,
    CWATAdversary,
    FreeAdversary,
    MTDAdversary,
    PGDAdversary,
)

from benchmarks.passes import gradient, loss
from benchmarks.subject import Subject
from benchmarks.table import Table
from benchmarks.timing import Clock, Side, compare

STOCK = 'stock update'
WITH_GRADIENT = 'stock update that also computes the input gradient'
FREE = 'FreeAT update'
OFFICIAL = 'FreeAT update with two backward passes, as the official code'

# FreeAT is free: an update costs at most this many stock ones, or where the input
# gradient alone costs more, at most so many times the passes.
STOCK_LIMIT = 1.15
PASSES_LIMIT = 1.03

_EPS = 4
_STEPS = 2


def training_sections(subject: Subject, clock: Clock, repeats: int) -> list[Table]:
    """FreeAT against the stock update."""
    return [compare('FreeAT', free_sides(subject), clock, repeats)]


def inner_sections(subject: Subject, clock: Clock, repeats: int) -> list[Table]:
    """Methods that attack each batch first, against the passes of attack and update."""
    title = 'Methods with an inner attack'
    return [compare(title, inner_sides(subject), clock, repeats)]


def free_sides(subject: Subject) -> list[Side]:
    """Stock updates, and those of FreeAT with each of its objectives."""
    count = len(subject.batch['inputs'])

    def with_gradient() -> None:
        images = [image.requires_grad_() for image in subject.images()]
        _learn(subject, with_images(subject.batch, images))

    total = FreeAdversary(eps=_EPS, carry='run')
    official = FreeAdversary(eps=_EPS, carry='run', objective='cls+reg')
    return [
        _stock(subject),
        Side(WITH_GRADIENT, with_gradient, count),
        Side(
            FREE,
            _updates(subject, total),
            count,
            passes=WITH_GRADIENT,
            limit=PASSES_LIMIT,
            base_limit=STOCK_LIMIT,
        ),
        Side(OFFICIAL, _updates(subject, official), count, passes=WITH_GRADIENT),
    ]


def inner_sides(subject: Subject) -> list[Side]:
    """Every method with an inner attack, and its passes alone."""
    batch, count = subject.batch, len(subject.batch['inputs'])
    samples = subject.samples(batch)
    total, cls, reg = Objective(), Objective('cls'), Objective('reg')

    def passes(*objectives: Objective, judged: int = 0, apart: bool = False) -> None:
        """Gradients of objectives, values of the total loss, and the update."""
        images = subject.images()
        with loss_mode(subject.model):
            for objective in objectives:
                gradient(subject, images, samples, objective)
            alone = [[i] for i in range(count)]
            with torch.no_grad():
                for part in (alone if apart else [list(range(count))]) * judged:
                    loss(subject, [images[i] for i in part], [samples[i] for i in part])
        _learn(subject, with_images(batch, images))

    several = [total] * _STEPS
    methods: dict[str, tuple[Adversary, Callable[[], None]]] = {
        f'PGD-AT, {_STEPS} steps': (
            PGDAdversary(eps=_EPS, num_steps=_STEPS),
            lambda: passes(*several),
        ),
        f'APGD-AT, {_STEPS} steps': (
            APGDAdversary(eps=_EPS, num_steps=_STEPS),
            lambda: passes(*several, judged=1),
        ),
    }
    if not subject.classifier:
        methods['CWAT, 1 step'] = (CWATAdversary(eps=_EPS), lambda: passes(total))
        # It judges image by image.
        methods['MTD, 1 step'] = (
            MTDAdversary(eps=_EPS),
            lambda: passes(cls, reg, judged=2, apart=True),
        )
    sides = [_stock(subject)]
    for name, (adversary, alone) in methods.items():
        own = f'passes of {name}'
        update = _updates(subject, adversary)
        sides += [
            Side(own, alone, count),
            Side(f'update of {name}', update, count, passes=own),
        ]
    return sides


def _stock(subject: Subject) -> Side:
    return Side(
        STOCK, lambda: _learn(subject, subject.batch), len(subject.batch['inputs'])
    )


def _learn(subject: Subject, batch: dict) -> None:
    subject.model.train_step(batch, optim_wrapper=subject.wrapper)


def _updates(subject: Subject, adversary: Adversary) -> Callable[[], object]:
    # Iteration 1: not the first of a pass over the data, which may start anew.
    return lambda: adversary.train_step(
        subject.model, subject.wrapper, subject.batch, 1
    )
