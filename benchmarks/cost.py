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
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmengine.logging import MMLogger
from mmrobust import cli
from mmrobust.errors import ConfigError
from mmrobust.report.robustness import package_versions
from mmrobust.utils.files import write_atomically

from benchmarks import SECTIONS, Clock, Subject, as_markdown


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
    for name in ('repeats', 'batch_size', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f'--{name.replace("_", "-")} must be at least 1.')
    if args.size and min(args.size) < 32:
        raise ConfigError('--size must be at least 32 32.')
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = Clock(device_of(args.device), args.clock)
    # Initialisation tells about every weight, one by one.
    MMLogger.get_instance('mmengine', log_level='WARNING')
    cfg = cli.configure(args)
    size = tuple(args.size) if args.size else None
    subject = Subject(cfg, clock.device, size, args.batch_size)
    about = facts(args, subject)
    tables = {
        name: SECTIONS[name](subject, clock, args.repeats) for name in args.sections
    }
    every = [table for part in tables.values() for table in part]
    failures = [f'{t.title}: {what}' for t in every for what in t.failures]
    lines = [f'{name}: {value}' for name, value in about.items()]
    print(f'\n{as_markdown(lines, every)}\n')
    if args.json:
        content: dict[str, Any] = {
            **about,
            'sections': {k: [t.as_dict() for t in v] for k, v in tables.items()},
            'failures': failures,
        }
        write_atomically(args.json, json.dumps(content, indent=1))
    for failure in failures:
        print(f'limit not kept: {failure}', file=sys.stderr)
    if failures and args.check:
        sys.exit(1)


def device_of(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ConfigError: if there is none.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip('.')
        raise ConfigError(f'--device {name} cannot be used: {reason}.') from error
    return device


def facts(args: argparse.Namespace, subject: Subject) -> dict[str, str]:
    """What figures depend on."""
    processor = _processor()
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


def _processor() -> str:
    """The CPU's name, which Python knows on some systems only."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


if __name__ == '__main__':
    cli.run(main)
