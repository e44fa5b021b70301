"""Measures attacks and updates on a GPU, with every option of speed: a table.

    python -m benchmarks.gpu --json gpu.json

measures PGD-20 on one image and on several, adversarial updates, their memory, on
Faster R-CNN, FCOS and DAB-DETR with ResNet-50 at 800 x 1333, the matrix peak of the
device and the share of it that attacks reach, and for every ``--effect CONFIG
CHECKPOINT`` the AP that each option's attack leaves. Each option is measured against
the same passes without it, and the images that an attack finds are judged in full
precision, whatever it was computed in. Images and weights are made up (but for
``--effect``), and nothing is downloaded. What does not fit into ``--minutes`` is left
out. ``--device cpu --size 64 96 --steps 2`` shows without a GPU that all of it works.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmengine.logging import MMLogger
from mmrobust import cli
from mmrobust.attacks import PGD
from mmrobust.batch import float_images, take
from mmrobust.errors import ConfigError
from mmrobust.objective import (
    NotStackedError,
    Objective,
    StackedOracle,
    find_seams,
    loss_mode,
    make_oracle,
)
from mmrobust.report import device_name, package_versions
from mmrobust.studies.study import running
from mmrobust.training import Adversary, FreeAdversary, PGDAdversary
from mmrobust.utils.acceleration import Acceleration
from mmrobust.utils.configs import read_config
from mmrobust.utils.files import write_atomically
from mmrobust.utils.measuring import counts_operations
from torch import Tensor

from benchmarks.subject import Subject, loss
from benchmarks.timing import Clock

MODELS = (
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
)
# By name what a loop's ``speed`` takes, and mmengine's own env_cfg.cudnn_benchmark.
OPTIONS: dict[str, dict[str, Any]] = {
    'none': {},
    'cudnn_benchmark': {'cudnn_benchmark': True},
    'channels_last': {'channels_last': True},
    'autocast': {'autocast': 'bfloat16'},
    'compile': {'compile': True},
    'autocast, channels_last': {'autocast': 'bfloat16', 'channels_last': True},
    'all three': {'autocast': 'bfloat16', 'channels_last': True, 'compile': True},
}
# Attacks on one image, attacked AP, updates, attacks on a batch.
MEASURES = ('attack', 'effect', 'update', 'batch')
_COLUMNS = {
    'model': 'model',
    'what': 'what',
    'batch': 'images together',
    'option': 'option',
    'images_per_second': 'images/s',
    'speed_up': 'speed-up',
    'share': 'share of peak',
    'reached': 'loss reached',
    'AP': 'AP under attack',
    'benign': 'benign AP',
    'peak_mebibytes': 'MiB',
    'first_seconds': 'first call, s',
    'failed': 'failed',
}

Row = dict[str, Any]


def attack_rows(
    subject: Subject,
    batch: dict,
    steps: int = 20,
    repeats: int = 3,
    options: Mapping[str, Mapping[str, Any]] = OPTIONS,
    late: Callable[[], bool] = lambda: False,
    own_losses: bool = False,
) -> Iterator[Row]:
    """Measures PGD on a batch with each option: of one image as evaluations attack it.

    Args:
        subject: has the detector.
        batch: what is attacked, of the subject's; several images share one loss.
        steps: of PGD (eps 8, random start, best iterate kept).
        repeats: measurements after the first call, which compiles and is not counted.
        options: what is measured; the first is what the others are compared with.
        late: whether to stop before another option.
        own_losses: several images share the network's passes only, as with the
            ``attack_batch_size`` of an evaluation.

    Yields:
        For every option ``images_per_second``, ``speed_up``, ``first_seconds`` (of the
        first call), ``tflops`` per second, and ``reached``: how far the attack raises
        the loss, as a share of what the first option reaches; ``failed`` with the
        reason instead where it does not work, in a single row where images cannot
        share passes.
    """
    model, device = subject.model, subject.device
    if late():
        return
    samples = subject.samples(batch)
    clean, together = float_images(batch, device), len(samples) > 1
    attack, seams, what = PGD(eps=8, num_steps=steps), None, f'PGD-{steps}'
    if together:
        what += ', own losses' if own_losses else ', one loss'
    if own_losses:
        try:
            with loss_mode(model):
                seams = find_seams(model, take(batch, [0]), samples[:1])
        except NotStackedError as error:
            yield {'what': what, 'batch': len(samples), 'failed': str(error)}
            return

    def oracle() -> Any:
        basis = model, batch, samples, Objective()
        if seams is not None:
            return StackedOracle(*basis, seams, range(len(samples)))
        return make_oracle(*basis, not together)

    def run() -> list[Tensor]:
        return attack.perturb(oracle(), clean, torch.Generator().manual_seed(0))

    def reached(images: list[Tensor]) -> float:
        torch.manual_seed(0)
        with loss_mode(model):
            return float(oracle().value(images).sum())

    before, gain = reached(clean), None
    work = operations(subject, clean, samples, attack)
    measured = _with_each_option(
        subject, run, len(clean), repeats, options, late, partial(loss_mode, model)
    )
    for place, (row, found) in enumerate(measured):
        if 'failed' not in row:
            raised = reached(found) - before
            gain = raised if place == 0 else gain
            row['reached'] = raised / gain if gain else None
            row['tflops'] = work / row['seconds'] / 1e12
        yield {'what': what, **row}


def update_rows(
    subject: Subject,
    repeats: int = 3,
    options: Mapping[str, Mapping[str, Any]] = OPTIONS,
    late: Callable[[], bool] = lambda: False,
) -> Iterator[Row]:
    """Measures updates of FreeAT and PGD-AT as :func:`attack_rows` does attacks."""
    model, batch = subject.model, subject.batch
    methods: dict[str, Adversary] = {
        'FreeAT update': FreeAdversary(eps=4, carry='run'),
        'PGD-AT update, 3 steps': PGDAdversary(eps=4, num_steps=3),
    }
    for method, adversary in methods.items():
        run = partial(adversary.train_step, model, subject.wrapper, batch, 1)
        count = len(batch['inputs'])
        for row, _ in _with_each_option(subject, run, count, repeats, options, late):
            yield {'what': method, **row}


def _with_each_option(
    subject: Subject,
    run: Callable[[], Any],
    images: int,
    repeats: int,
    options: Mapping[str, Mapping[str, Any]],
    late: Callable[[], bool],
    around: Callable[[], Any] = contextlib.nullcontext,
) -> Iterator[tuple[Row, Any]]:
    """Measures a run with each option; yields rows and the run's last results."""
    base = None
    for place, (name, option) in enumerate(options.items()):
        if late():
            return
        with around():
            row, found = _measure(subject, option, run, repeats)
        if 'failed' not in row:
            base = row['seconds'] if place == 0 else base
            row['images_per_second'] = images / row['seconds']
            if base is not None:  # nothing is said relative to what failed
                row['speed_up'] = base / row['seconds']
        yield {'batch': images, 'option': name, **row}, found


def _measure(
    subject: Subject, option: Mapping[str, Any], run: Callable[[], Any], repeats: int
) -> tuple[Row, Any]:
    """Measures a run with an option; what fails says why."""
    settings, clock = dict(option), Clock(subject.device)
    row: Row = {}
    found, seconds = None, []
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = settings.pop('cudnn_benchmark', False)
    # Otherwise the graphs of other models and options would count against its limit.
    torch._dynamo.reset()
    torch.manual_seed(0)
    cuda = subject.device.type == 'cuda'
    there = 0
    if cuda:
        # Other subjects lie on the card, too.
        there = torch.cuda.memory_allocated(subject.device)
        torch.cuda.reset_peak_memory_stats(subject.device)
    try:
        speed = Acceleration.read(settings)
        with speed.prepared(subject.model), speed.on(subject.model):
            for _ in range(repeats + 1):
                started = clock.now()
                found = run()
                seconds.append(clock.now() - started)
        row['first_seconds'] = seconds[0]
        row['seconds'] = statistics.median(seconds[1:])
    except (ConfigError, torch.cuda.OutOfMemoryError) as error:
        row['failed'] = str(error).split('\n')[0]
    finally:
        torch.backends.cudnn.benchmark = before
    if cuda:
        peak = torch.cuda.max_memory_allocated(subject.device) - there
        row['peak_mebibytes'] = peak / 2**20
    return row, found


def operations(
    subject: Subject, images: list[Tensor], samples: list[Any], attack: PGD
) -> int:
    """Counts operations of an attack's convolutions and matrix products.

    Multiplications and additions count one each, as in the peak.
    """
    leaves = [image.detach().requires_grad_() for image in images]
    with loss_mode(subject.model):
        with counts_operations() as forward:
            value = loss(subject, leaves, samples)
        with counts_operations() as backward:
            value.backward()  # type: ignore[no-untyped-call]
    there, back = (int(c.get_total_flops()) for c in (forward, backward))
    # The clean image and the last iterate are asked for without a gradient.
    return (attack.num_steps + 2) * there + attack.num_steps * back


def matrix_peaks(
    device: torch.device, size: int, repeats: int = 10
) -> dict[str, float]:
    """Measures operations per second (10**12) of a large matrix product, by its format.

    Args:
        device: where it is computed.
        size: rows and columns of the matrices.
        repeats: products per measurement, of which the best of three counts.
    """
    formats = {'float32': (torch.float32, False), 'bfloat16': (torch.bfloat16, False)}
    if device.type == 'cuda':
        formats['tf32'] = (torch.float32, True)
    clock = Clock(device)
    before, peaks = torch.backends.cuda.matmul.allow_tf32, {}
    try:
        for name, (dtype, tf32) in formats.items():
            torch.backends.cuda.matmul.allow_tf32 = tf32
            # Random numbers: zeros make a GPU draw less power and go faster.
            pair = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]
            seconds = []
            for _ in range(4):
                started = clock.now()
                for _ in range(repeats):
                    pair[0] @ pair[1]
                seconds.append(clock.now() - started)
            peaks[name] = 2 * size**3 * repeats / min(seconds[1:]) / 1e12
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return peaks


def peak_format(option: Mapping[str, Any], device: torch.device) -> str:
    """Names the format whose peak the convolutions of an option can reach at most."""
    if option.get('autocast'):
        return 'bfloat16'
    tf32 = device.type == 'cuda' and torch.backends.cudnn.allow_tf32
    return 'tf32' if tf32 else 'float32'


def effect_row(
    config: str,
    checkpoint: str,
    speed: dict[str, Any],
    args: argparse.Namespace,
    device: torch.device,
) -> Row:
    """Measures AP without and with an accelerated PGD, as tools/test.py has it."""
    cfg = read_config(config)
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.json'
        cfg.work_dir, cfg.load_from = folder, checkpoint
        pgd = {'type': 'mmrobust.PGD', 'eps': 8, 'num_steps': args.steps}
        cfg.test_cfg = {
            'type': 'mmrobust.AttackTestLoop',
            'attacks': {'pgd': pgd},
            'num_images': args.num_images,
            'report': str(report),
            'check_images': 0,
            'gallery': 0,
            'speed': speed,
        }
        with running(cfg, 'effect') as runner:
            runner.model.to(device)
            runner.test()
        found = json.loads(report.read_text())
    (attack,) = found['attacks']
    count = attack['cost']['images']
    return {
        'what': f'PGD-{args.steps}, eps 8, {count} images',
        'AP': attack['boxes']['mAP']['estimate'],
        'benign': found['benign']['boxes']['mAP']['estimate'],
        'images_per_second': count / attack['cost']['seconds'],
    }


def rows(args: argparse.Namespace, device: torch.device, late: Any) -> Iterator[Row]:
    """Measures everything, in the order of its importance."""
    chosen = {name: OPTIONS[name] for name in args.options}
    attacks = (args.steps, args.repeats, chosen, late)
    subjects: dict[str, Subject] = {}
    for path in args.models:
        if late():
            return
        name = path.split('/')[-1].split('_')[0].removesuffix('.py')
        cfg = read_config(path)
        own = subjects[name] = Subject(cfg, device, tuple(args.size), args.batch_size)
        if 'attack' in args.measure:
            for row in attack_rows(own, take(own.batch, [0]), *attacks):
                yield {'model': name, **row}
    for config, checkpoint in args.effect if 'effect' in args.measure else ():
        for option, settings in chosen.items():
            if 'cudnn_benchmark' not in settings and not late():
                row = effect_row(config, checkpoint, settings, args, device)
                yield {'model': Path(config).stem, 'option': option, **row}
    for name, own in subjects.items() if 'update' in args.measure else ():
        for row in update_rows(own, *attacks[1:]):
            yield {'model': name, **row}
    for name, own in subjects.items() if 'batch' in args.measure else ():
        for own_losses in (True, False):
            for row in attack_rows(own, own.batch, *attacks, own_losses):
                yield {'model': name, **row}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--models', nargs='*', default=MODELS, help='configs')
    add('--size', nargs=2, type=int, default=(800, 1333), help='height and width')
    add('--batch-size', type=int, default=8, help='of training')
    add('--steps', type=int, default=20, help='of PGD')
    add('--repeats', type=int, default=3)
    add('--options', nargs='+', choices=list(OPTIONS), default=OPTIONS)
    add('--measure', nargs='+', choices=MEASURES, default=MEASURES)
    add(
        '--effect',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help="measure the options' effect on the attacked AP (eps 8)",
    )
    add('--num-images', type=int, help='of --effect; default: all')
    add('--minutes', type=float, default=8, help='start nothing later')
    add('--peak-size', type=int, help='side of the matrices')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--json', metavar='FILE', help='rewritten after every row')
    return parser.parse_args()


def main() -> None:
    """Measures, and prints a Markdown table as far as it has come."""
    args = parse_args()
    device, end = torch.device(args.device), time.monotonic() + 60 * args.minutes
    MMLogger.get_instance('mmengine', log_level='WARNING')
    size = args.peak_size or (8192 if args.device != 'cpu' else 1024)
    peaks = matrix_peaks(device, size)
    result: dict[str, Any] = {
        'device': device_name(device),
        'versions': package_versions(),
        'size': list(args.size),
        'steps': args.steps,
        'matrix_peaks_tflops': peaks,
        'rows': [],
    }
    print(f'{result["device"]}, matrix peaks in TFLOP/s: {rounded(peaks)}\n')
    # Not a table of the report: its rows are printed one by one.
    print(f'| {" | ".join(_COLUMNS.values())} |\n|{" --- |" * len(_COLUMNS)}')
    for row in rows(args, device, lambda: time.monotonic() > end):
        if 'tflops' in row:
            row['peak'] = peak_format(OPTIONS[row['option']], device)
            row['share'] = row['tflops'] / peaks[row['peak']]
        result['rows'].append(row)
        cells = ['' if row.get(k) is None else rounded(row[k]) for k in _COLUMNS]
        print(f'| {" | ".join(cells)} |', flush=True)
        if args.json:
            write_atomically(Path(args.json), json.dumps(result, indent=1))
    if time.monotonic() > end:
        print(f'\nMore did not fit into {args.minutes:g} minutes.')


def rounded(value: Any) -> str:
    """Writes numbers with three digits."""
    if isinstance(value, dict):
        return ', '.join(f'{key} {rounded(each)}' for key, each in value.items())
    return f'{value:.3g}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
    cli.run(main)
