"""Measures what adversarial training and attacks cost, as ratios within one run.

Updates against stock updates of the same batch, attack steps against bare forward and
backward passes, and the memory of each. The sides of a ratio take turns, so that a
machine whose speed drifts slows all of them. Figures that have a limit say whether they
keep it. docs/speed.md has results and how to repeat them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmengine.logging import MMLogger
from mmrobust import cli
from mmrobust.attacks import APGD, PGD, Attack
from mmrobust.batch import float_images, with_images
from mmrobust.objective import Inputs, Objective, loss_mode, make_oracle
from mmrobust.report import package_versions
from mmrobust.training import (
    Adversary,
    APGDAdversary,
    CWATAdversary,
    FreeAdversary,
    MTDAdversary,
    PBCATAdversary,
    PGDAdversary,
)
from mmrobust.utils.files import write_atomically
from torch import Tensor

from benchmarks.subject import Subject, loss
from benchmarks.timing import Clock, Side, Table, compare, peak_bytes, possible

STOCK = 'stock update'
WITH_GRADIENT = 'stock update that also computes the input gradient'
FREE = 'FreeAT update'
OFFICIAL = 'FreeAT update with two backward passes, as the official code'
BARE = 'forward and input-only backward pass'

# FreeAT is free: an update costs at most this many stock ones, or where the input
# gradient alone costs more, at most so many times the passes.
STOCK_LIMIT = 1.15
PASSES_LIMIT = 1.03
# An attack step costs at most this many times its passes.
STEP_LIMIT = 1.03

_EPS = 4
_INNER_STEPS = 2
_ATTACK_STEPS = 10


def gradient(
    subject: Subject,
    images: Sequence[Tensor],
    samples: Sequence[Any],
    objective: Objective | None = None,
    prepare: Inputs | None = None,
) -> None:
    """Makes one forward and input-only backward pass; see :func:`.subject.loss`.

    Inside :func:`mmrobust.objective.loss_mode`, which freezes the weights.
    """
    leaves = [image.detach().requires_grad_() for image in images]
    torch.autograd.grad(loss(subject, leaves, samples, objective, prepare), leaves)


def free_sides(subject: Subject) -> list[Side]:
    """Returns stock updates, and those of FreeAT with each of its objectives."""
    count = len(subject.batch['inputs'])

    def with_gradient() -> None:
        images = [image.requires_grad_() for image in subject.images()]
        subject.learn(with_images(subject.batch, images))

    def update(**settings: Any) -> Callable[[], object]:
        return _updates(subject, FreeAdversary(eps=_EPS, carry='run', **settings))

    official = update(objective='cls+reg')
    return [
        Side(STOCK, subject.learn, count),
        Side(WITH_GRADIENT, with_gradient, count),
        Side(FREE, update(), count, 1, WITH_GRADIENT, PASSES_LIMIT, STOCK_LIMIT),
        Side(OFFICIAL, official, count, passes=WITH_GRADIENT),
    ]


def inner_sides(subject: Subject) -> list[Side]:
    """Returns every method that makes passes before its update, and these alone."""
    batch, count = subject.batch, len(subject.batch['inputs'])
    samples = subject.samples(batch)
    total, cls, reg = Objective(), Objective('cls'), Objective('reg')

    def passes(*objectives: Objective, judged: int = 0, apart: bool = False) -> None:
        """Makes gradients of objectives, values of the total loss, and the update."""
        images = subject.images()
        with loss_mode(subject.model):
            for objective in objectives:
                gradient(subject, images, samples, objective)
            alone = [[i] for i in range(count)]
            with torch.no_grad():
                for part in (alone if apart else [list(range(count))]) * judged:
                    loss(subject, [images[i] for i in part], [samples[i] for i in part])
        subject.learn(with_images(batch, images))

    def free(first: Callable[[], None]) -> None:
        """Makes a pass, and then an update that also computes the input gradient."""
        first()
        images = [image.requires_grad_() for image in subject.images()]
        subject.learn(with_images(batch, images))

    def on_clean() -> None:
        with loss_mode(subject.model):
            gradient(subject, subject.images(), samples)

    def of_weights() -> None:
        loss(subject, subject.images(), samples).backward()

    steps, several = _INNER_STEPS, [total] * _INNER_STEPS
    methods: dict[str, tuple[Adversary, Callable[[], None]]] = {
        f'PGD-AT, {steps} steps': (
            PGDAdversary(eps=_EPS, num_steps=steps),
            partial(passes, *several),
        ),
        f'APGD-AT, {steps} steps': (
            APGDAdversary(eps=_EPS, num_steps=steps),
            partial(passes, *several, judged=1),
        ),
    }
    if not subject.classifier:
        methods['CWAT, 1 step'] = (CWATAdversary(eps=_EPS), partial(passes, total))
        # It judges image by image.
        apart = partial(passes, cls, reg, judged=2, apart=True)
        methods['MTD, 1 step'] = (MTDAdversary(eps=_EPS), apart)
        methods['PBCAT'] = (
            PBCATAdversary(eps=_EPS, carry='run'),
            partial(free, on_clean),
        )
        methods['FreeAT with AWP'] = (
            FreeAdversary(eps=_EPS, carry='run', awp_gamma=0.005),
            partial(free, of_weights),
        )
    sides = [Side(STOCK, subject.learn, count)]
    for name, (adversary, alone) in methods.items():
        own = f'passes of {name}'
        update = _updates(subject, adversary)
        sides += [
            Side(own, alone, count),
            Side(f'update of {name}', update, count, passes=own),
        ]
    return sides


def _updates(subject: Subject, adversary: Adversary) -> Callable[[], object]:
    # Iteration 1: not the first of a pass over the data, which may start anew.
    return lambda: adversary.train_step(
        subject.model, subject.wrapper, subject.batch, 1
    )


def attack_sides(subject: Subject) -> list[Side]:
    """Returns bare passes, and the same number of steps of PGD and APGD.

    They run inside :func:`mmrobust.objective.loss_mode`.
    """
    part, samples = subject.attacked()
    count = len(part['inputs'])

    def bare() -> None:
        images = float_images(part, subject.device)
        # As in an attack, so that the work on samples does not hide what that adds.
        prepare = None if subject.classifier else Inputs(subject.model, part)
        for _ in range(_ATTACK_STEPS):
            gradient(subject, images, samples, prepare=prepare)

    def perturb(attack: Attack) -> None:
        oracle = make_oracle(subject.model, part, samples, Objective())
        images = float_images(part, subject.device)
        attack.perturb(oracle, images, torch.Generator())

    # With the best iterate they would ask for two values more, once per attack.
    settings: dict[str, Any] = {'num_steps': _ATTACK_STEPS, 'keep_best': False}
    attacks = {
        'PGD step': PGD(eps=_EPS, **settings),
        'APGD step': APGD(eps=_EPS, **settings),
    }
    return [Side(BARE, bare, count, _ATTACK_STEPS)] + [
        Side(name, partial(perturb, attack), count, _ATTACK_STEPS, BARE, STEP_LIMIT)
        for name, attack in attacks.items()
    ]


def peaks(subject: Subject) -> Table:
    """Measures the peak memory of updates and attacks, beside the stock update's.

    Counted is what tensors take beyond what is there before: weights, optimizer state
    and the batch. Gradients of the weights belong to the peak of an update. Attacks
    see as many images at once as an evaluation shows them: of a detector one.
    """

    def measure(sides: list[Side]) -> dict[str, int]:
        # Having run once they have made what lasts: momenta, perturbations.
        sides, without = possible(sides)
        notes.extend(without)
        found = {}
        for side in sides:
            subject.model.zero_grad(set_to_none=True)
            found[side.name] = peak_bytes(side.run, subject.device)
        return found

    notes: list[str] = []
    inner = [s for s in inner_sides(subject) if s.name.startswith('update of PGD-AT')]
    found = measure([*free_sides(subject), *inner])
    with loss_mode(subject.model):
        found |= measure(attack_sides(subject))
    rows = [
        {'what': name, 'mebibytes': peak / 2**20, 'ratio': peak / found[STOCK]}
        for name, peak in found.items()
    ]
    columns = {'what': 'what', 'mebibytes': 'MiB', 'ratio': f'ratio to {STOCK}'}
    title = 'Peak memory beyond weights, optimizer state and batch'
    return Table(title, columns, rows, notes)


def _attack_steps(subject: Subject, clock: Clock, repeats: int) -> Table:
    around = partial(loss_mode, subject.model)
    return compare('Attack, per step', attack_sides(subject), clock, repeats, around)


# A section measures the subject with a clock, so many times.
SECTIONS: dict[str, Callable[[Subject, Clock, int], Table]] = {
    'training': lambda s, clock, n: compare('FreeAT', free_sides(s), clock, n),
    'inner': lambda s, clock, n: compare(
        'Methods with an inner attack', inner_sides(s), clock, n
    ),
    'attack': _attack_steps,
    'memory': lambda subject, *_: peaks(subject),
}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument('config', help="config file, or a name like 'mmdet::fcos/...'")
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help="measure on synthetic images of this size, not on the config's data",
    )
    parser.add_argument('--batch-size', type=int, help="default: the config's own")
    parser.add_argument('--repeats', type=int, default=10, help='measurements per side')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument('--threads', type=int, help='of the CPU; default: all')
    parser.add_argument(
        '--clock',
        choices=['wall', 'cpu'],
        default='wall',
        help='cpu: the time of this process alone, for a machine that others use too',
    )
    parser.add_argument(
        '--sections', nargs='+', choices=list(SECTIONS), default=list(SECTIONS)
    )
    parser.add_argument('--json', metavar='FILE', help='write all figures there too')
    parser.add_argument(
        '--check', action='store_true', help='exit with 1 if a limit is not kept'
    )
    cli.add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Measures and prints Markdown tables."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = Clock(args.device, args.clock)
    # Initialisation tells about every weight, one by one.
    MMLogger.get_instance('mmengine', log_level='WARNING')
    cfg = cli.configure(args)
    size = tuple(args.size) if args.size else None
    subject = Subject(cfg, clock.device, size, args.batch_size)
    about = facts(args, subject)
    tables = {
        name: SECTIONS[name](subject, clock, args.repeats) for name in args.sections
    }
    failures = [f'{t.title}: {what}' for t in tables.values() for what in t.failures]
    lines = '  \n'.join(f'{name}: {value}' for name, value in about.items())
    print('\n' + '\n\n'.join([lines, *(t.markdown() for t in tables.values())]) + '\n')
    if args.json:
        sections = {
            name: [{'title': t.title, 'rows': t.rows, 'notes': t.notes}]
            for name, t in tables.items()
        }
        content = {**about, 'sections': sections, 'failures': failures}
        write_atomically(args.json, json.dumps(content, indent=1))
    for failure in failures:
        print(f'limit not kept: {failure}', file=sys.stderr)
    if failures and args.check:
        sys.exit(1)


def facts(args: argparse.Namespace, subject: Subject) -> dict[str, str]:
    """Says what figures depend on."""
    processor = platform.processor() or platform.machine()
    # Python knows the CPU's name on some systems only.
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        names = [line for line in file if line.startswith('model name')]
        processor = names[0].partition(':')[2].strip() if names else processor
    if subject.device.type == 'cuda':
        processor = f'{torch.cuda.get_device_name(subject.device)}, {processor}'
    versions = package_versions()
    data = 'synthetic' if args.size else 'from the config'
    return {
        'config': args.config,
        'batch': f'{subject.describe()}, {data}',
        'machine': f'{args.device} ({processor}), {torch.get_num_threads()} threads, '
        f'{platform.system()}',
        'versions': ', '.join(f'{name} {number}' for name, number in versions.items()),
        'measured': f'{args.repeats} times each in turns, {args.clock} clock; medians',
    }


if __name__ == '__main__':
    cli.run(main)
