"""Images per second of attacks and adversarial updates, with every option of speed.

    python -m benchmarks.throughput --json gpu.json

measures PGD-20 and adversarial updates on Faster R-CNN, FCOS and DAB-DETR with
ResNet-50 at 800 x 1333, the matrix peak of the device and the share of it that attacks
reach, and for every ``--effect CONFIG CHECKPOINT`` the AP that each option's attack
leaves. Images and weights are made up (but for ``--effect``), and nothing is
downloaded. What does not fit into ``--minutes`` is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmrobust import cli
from mmrobust.batch import take
from mmrobust.report import device_name, package_versions
from mmrobust.utils.files import write_atomically

from benchmarks.options import (
    OPTIONS,
    Row,
    attack_rows,
    matrix_peaks,
    peak_format,
    update_rows,
)
from benchmarks.subject import Subject

MODELS = (
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
)
# Attacks on one image, attacked AP, updates, attacks on a batch.
MEASURES = ('attack', 'effect', 'update', 'batch')
_PGD = {'type': 'mmrobust.PGD', 'eps': 8}
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


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', nargs='*', default=MODELS, help='configs')
    parser.add_argument(
        '--size', nargs=2, type=int, default=(800, 1333), help='height and width'
    )
    parser.add_argument('--batch-size', type=int, default=8, help='of training')
    parser.add_argument('--steps', type=int, default=20, help='of PGD')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--options', nargs='+', choices=list(OPTIONS), default=OPTIONS)
    parser.add_argument('--measure', nargs='+', choices=MEASURES, default=MEASURES)
    parser.add_argument(
        '--effect',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help="measure the options' effect on the attacked AP (eps 8)",
    )
    parser.add_argument('--num-images', type=int, help='of --effect; default: all')
    parser.add_argument('--minutes', type=float, default=8, help='start nothing later')
    parser.add_argument('--peak-size', type=int, help='side of the matrices')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument('--json', metavar='FILE', help='rewritten after every row')
    return parser.parse_args()


def main() -> None:
    """Measures, and prints a Markdown table as far as it has come."""
    args = parse_args()
    device, end = torch.device(args.device), time.monotonic() + 60 * args.minutes
    MMLogger.get_instance('mmengine', log_level='WARNING')
    peaks = matrix_peaks(
        device, args.peak_size or (8192 if args.device != 'cpu' else 1024)
    )
    result: dict[str, Any] = {
        'device': device_name(device),
        'versions': package_versions(),
        'size': list(args.size),
        'steps': args.steps,
        'matrix_peaks_tflops': peaks,
        'rows': [],
    }
    print(f'{result["device"]}, matrix peaks in TFLOP/s: {rounded(peaks)}\n')
    print(f'| {" | ".join(_COLUMNS.values())} |\n|{" --- |" * len(_COLUMNS)}')
    for row in rows(args, device, lambda: time.monotonic() > end):
        option = OPTIONS[row['option']]
        if 'tflops' in row:
            row['peak'] = peak_format(option, device)
            row['share'] = row['tflops'] / peaks[row['peak']]
        result['rows'].append(row)
        cells = ['' if row.get(k) is None else rounded(row[k]) for k in _COLUMNS]
        print(f'| {" | ".join(cells)} |', flush=True)
        if args.json:
            write_atomically(Path(args.json), json.dumps(result, indent=1))
    if time.monotonic() > end:
        print(f'\nMore did not fit into {args.minutes:g} minutes.')


def rows(args: argparse.Namespace, device: torch.device, late: Any) -> Iterator[Row]:
    """Everything, in the order of its importance."""
    chosen = {name: OPTIONS[name] for name in args.options}
    subjects: dict[str, Subject] = {}
    for path in args.models:
        name = path.split('/')[-1].split('_')[0].removesuffix('.py')
        if late():
            return
        cfg = cli.read_config(path)
        own = Subject(cfg, device, tuple(args.size), args.batch_size)
        subjects[name] = own
        if 'attack' in args.measure:
            one = take(own.batch, [0])
            for row in attack_rows(own, one, args.steps, args.repeats, chosen, late):
                yield {'model': name, **row}
    for config, checkpoint in args.effect if 'effect' in args.measure else ():
        for option, settings in chosen.items():
            if 'cudnn_benchmark' not in settings and not late():
                row = effect_row(config, checkpoint, settings, args, device)
                yield {'model': Path(config).stem, 'option': option, **row}
    for name, own in subjects.items() if 'update' in args.measure else ():
        for row in update_rows(own, args.repeats, chosen, late):
            yield {'model': name, **row}
    for name, own in subjects.items() if 'batch' in args.measure else ():
        every = own.batch
        for row in attack_rows(own, every, args.steps, args.repeats, chosen, late):
            yield {'model': name, **row}


def effect_row(
    config: str,
    checkpoint: str,
    speed: dict[str, Any],
    args: argparse.Namespace,
    device: torch.device,
) -> Row:
    """AP without and with PGD whose attack is accelerated, as tools/test.py has it."""
    cfg: Config = cli.read_config(config)
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.json'
        cfg.work_dir, cfg.load_from = folder, checkpoint
        cfg.test_cfg = {
            'type': 'mmrobust.AttackTestLoop',
            'attacks': {
                'pgd': {'type': 'mmrobust.PGD', 'eps': 8, 'num_steps': args.steps}
            },
            'num_images': args.num_images,
            'report': str(report),
            'check_images': 0,
            'gallery': 0,
            'speed': speed,
        }
        runner = Runner.from_cfg(cfg)
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


def rounded(value: Any) -> str:
    """Numbers to three digits."""
    if isinstance(value, dict):
        return ', '.join(f'{key} {rounded(each)}' for key, each in value.items())
    return f'{value:.3g}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
    cli.run(main)
