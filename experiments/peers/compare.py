"""mmrobust's PGD and APGD beside the PGD of ARES and of ART, on one mmdet detector.

    python experiments/peers/compare.py CONFIG CHECKPOINT --ares ARES_CHECKOUT

Every attack gets the same weights, images, ground truth, losses, radius and number of
gradients; the stock prediction and metric judge the images that it finds. The attacks
take turns batch by batch, so that a machine whose speed drifts slows all of them.
Without a checkpoint only the cost is measured, with random weights on noise. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mmrobust
import torch
from ares_pgd import AresPGD, ares_attack
from art_pgd import ArtPGD, art_packages
from inputs import Setup, set_up
from methods import Method, Passes, ours
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from mmrobust import cli
from mmrobust.attacks import PGD
from mmrobust.errors import ConfigError
from mmrobust.objective import loss_mode
from mmrobust.report import markdown_table
from mmrobust.utils.files import write_atomically
from mmrobust.utils.validation import positive_int, to_pixels
from torch import Tensor

PEERS = ('ARES PGD', 'ART PGD')
# The attack of mmrobust that does the same; ARES draws its start by itself.
TWINS = dict(zip(PEERS, ('PGD, random start, last', 'PGD, last'), strict=True))
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}
COLUMNS = (
    *('AP', 'loss', 'largest change', 'forwards', 'backwards', 'weight gradients'),
    *('images/s', 'time / ARES', 'time / ART', 'peak MiB'),
)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of an mmdet detector')
    parser.add_argument('checkpoint', nargs='?', help='its weights; random without')
    parser.add_argument('--ares', metavar='PATH', help='checkout of thu-ml/ares')
    parser.add_argument('--art', metavar='PATH', help='folder with ART installed in it')
    parser.add_argument('--no-art', action='store_true', help='leave ART out')
    parser.add_argument(
        '--same-start',
        action='store_true',
        help='start ARES where mmrobust starts, not at a random point of its own',
    )
    parser.add_argument('--eps', default=8, help='radius in pixel units')
    parser.add_argument('--num-steps', type=int, default=10)
    parser.add_argument(
        '--step-size',
        type=float,
        help='of PGD, in pixel units; by default 2.5 * eps / num_steps',
    )
    parser.add_argument('--losses', nargs='+', help='loss terms to attack, else all')
    parser.add_argument('--num-images', type=int, default=50)
    parser.add_argument('--size', type=int, default=320, help='of images of noise')
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images that a peer attacks at once'
    )
    parser.add_argument('--repeats', type=int, default=1, help='of the time measured')
    parser.add_argument(
        '--clock',
        choices=list(CLOCKS),
        default='wall',
        help="'cpu' counts the time of this process only, on a machine that is shared",
    )
    parser.add_argument('--methods', nargs='+', help='names of rows, else all')
    parser.add_argument('--memory', action='store_true', help='measure the memory too')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0, help='of the starts')
    parser.add_argument('--out', metavar='FILE', help='write the figures as JSON')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args()


def main() -> None:
    """Compares and prints a Markdown table."""
    args = parse_args()
    for name in ('num_steps', 'num_images', 'size', 'batch_size', 'repeats', 'threads'):
        positive_int(getattr(args, name), f'--{name.replace("_", "-")}')
    args.eps = to_pixels(args.eps, '--eps')
    args.step_size = PGD('linf', args.eps, args.step_size, args.num_steps).step_size
    ares = None if args.ares is None else ares_attack(args.ares)
    art = None if args.no_art else art_packages(args.art)
    torch.set_num_threads(args.threads)
    MMLogger.get_instance('peers', log_level='ERROR')
    setup = set_up(args)
    methods = build(setup, args, ares, art)
    rows = measure(setup, methods, args.repeats, CLOCKS[args.clock])
    for name, row in rows.items():
        if args.memory:
            row['peak MiB'] = peak_memory(name, args)
    if setup.evaluator is not None:
        clean = [batch.images for batch in setup.batches]
        benign = {'AP': setup.average_precision(clean), 'loss': setup.loss(clean)}
        rows = {'(no attack)': benign, **rows}
    report = {
        'settings': {k: v for k, v in vars(args).items() if k != 'out'},
        'losses': setup.losses,
        'machine': machine(),
        'rows': rows,
        'process peak MiB': own_peak(),
    }
    if args.out:
        write_atomically(args.out, json.dumps(report, indent=1, default=str))
    print(table(report))


def build(
    setup: Setup, args: argparse.Namespace, ares: Any, art: Any
) -> dict[str, Method]:
    """The attacks by name."""
    size = (args.eps, args.step_size, args.num_steps)
    methods = ours(setup, *size, whole_batch=args.batch_size > 1)
    known = [*methods, *([PEERS[0]] if ares else []), *([PEERS[1]] if art else [])]
    unknown = [name for name in args.methods or [] if name not in known]
    if unknown:
        raise ConfigError(
            f'--methods {unknown[0]!r} is unknown: choose from {"; ".join(known)}.'
        )
    wanted = args.methods or known
    if ares and PEERS[0] in wanted:
        methods[PEERS[0]] = AresPGD(ares, setup, *size, args.same_start)
    if art and PEERS[1] in wanted:
        methods[PEERS[1]] = ArtPGD(art, setup, *size, args.batch_size)
    return {name: method for name, method in methods.items() if name in wanted}


def measure(
    setup: Setup,
    methods: dict[str, Method],
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, Any]]:
    """What every attack finds, and what it costs."""
    found: dict[str, list[list[Tensor]]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    rows: dict[str, dict[str, Any]] = {name: {} for name in methods}
    order = list(methods)
    with loss_mode(setup.model):
        for name in order:
            rows[name].update(costs(setup, methods[name]))  # warms up, too
        for repeat in range(repeats):
            for batch in setup.batches:
                order.append(order.pop(0))
                for name in order:
                    started = clock()
                    images = methods[name](batch)
                    seconds[name].append(clock() - started)
                    if repeat == 0:
                        found[name].append(images)
    for name, row in rows.items():
        row['AP'] = setup.average_precision(found[name])
        row['loss'] = setup.loss(found[name])
        row['largest change'] = max(
            float((image - clean).abs().max())
            for batch, images in zip(setup.batches, found[name], strict=True)
            for clean, image in zip(batch.images, images, strict=True)
        )
        row['seconds'] = seconds[name]
        row['images/s'] = setup.num_images * repeats / sum(seconds[name])
        for peer in PEERS:
            if peer in seconds:
                pairs = zip(seconds[name], seconds[peer], strict=True)
                ratio = statistics.median(own / other for own, other in pairs)
                row[f'time / {peer.split()[0]}'] = ratio
    for peer, own in TWINS.items():
        if {peer, own} <= found.keys():
            rows[peer]['same values'] = agreement(found[own], found[peer])
    return rows


def costs(setup: Setup, method: Method) -> dict[str, Any]:
    """Passes per image of the first batch, and whether weights get gradients."""
    batch = setup.batches[0]
    method(batch)  # without what is done once
    passes = Passes(setup.model)
    method(batch)
    passes.remove()
    weights = list(setup.model.parameters())
    return {
        'forwards': passes.forwards / len(batch.images),
        'backwards': passes.backwards / len(batch.images),
        'weight gradients': any(weight.grad is not None for weight in weights),
    }


def agreement(one: list[list[Tensor]], other: list[list[Tensor]]) -> float:
    """Share of values that are the same to a hundredth of a pixel unit."""
    pairs = [
        ((a - b).abs() < 0.01).float().mean()
        for batches in zip(one, other, strict=True)
        for a, b in zip(*batches, strict=True)
    ]
    return float(torch.stack(pairs).mean())


def peak_memory(name: str, args: argparse.Namespace) -> float | None:
    """Largest resident size, in MiB, of a process that runs this attack only."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / 'out.json')
        own = [part for part in sys.argv if part != '--memory']
        # Later options win; a batch is enough, and the metric needs none of it.
        one = ['--num-images', str(args.batch_size), '--repeats', '1']
        command = [sys.executable, *own, *one, '--out', out, '--methods', name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f'the memory of {name} is unknown: {done.stderr[-300:]}')
        return json.loads(Path(out).read_text())['process peak MiB']


def own_peak() -> float | None:
    """Largest resident size of this process in MiB, where Linux tells it."""
    # Not getrusage, whose figure a process inherits from the one that started it.
    status = Path('/proc/self/status')
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) / 1024 for x in lines if x[:6] == 'VmHWM:'), None)


def machine() -> dict[str, str]:
    """Processor and versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [
            line.split(': ')[-1] for line in lines if line.startswith('model name')
        ]
        processor = f'{len(names)} x {names[0]}' if names else processor
    found = {'processor': processor, 'python': platform.python_version()}
    for package in ('torch', 'mmdet', 'mmengine', 'adversarial-robustness-toolbox'):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = 'unknown'
    return {**found, 'mmrobust': mmrobust.__version__}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows, settings = report['rows'], report['settings']
    columns = [
        c for c in COLUMNS if any(row.get(c) is not None for row in rows.values())
    ]
    lines = [
        f'{settings["config"]}, {settings["checkpoint"] or "random weights"}: '
        f'eps {settings["eps"]:g}, {settings["num_steps"]} steps of '
        f'{settings["step_size"]:g}, {settings["num_images"]} images, batches of '
        f'{settings["batch_size"]}, {settings["threads"]} threads, '
        f'{settings["clock"]} time; '
        f'losses {", ".join(report["losses"])}; '
        + ', '.join(f'{k} {v}' for k, v in report['machine'].items()),
        '',
        markdown_table(
            ['attack', *columns],
            [[n, *(_cell(row.get(c)) for c in columns)] for n, row in rows.items()],
        ),
    ]
    for peer, own in TWINS.items():
        same = rows.get(peer, {}).get('same values')
        if same is not None:
            text = f'"{peer}" and "{own}" agree in {same:.2%} of the pixel values.'
            lines += ['', text]
    return '\n'.join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ''
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return f'{value:.3f}' if value % 1 else f'{value:g}'


if __name__ == '__main__':
    cli.run(main)
