r"""How much AP every backward pass takes: mmrobust beside ARES and ART, as curves.

    python experiments/peers/strength.py --ares ARES_CHECKOUT --art ART_FOLDER \
        --detector standard configs/demo/standard_fcos.py standard.pth

Each point is a whole attack with that number of steps, whose step size is fit for it.
The same command goes on where it was stopped. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from ares_pgd import ares_attack
from art_pgd import art_packages
from compare import build, machine
from inputs import set_up
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from mmrobust import cli
from mmrobust.attacks import PGD
from mmrobust.errors import ConfigError
from mmrobust.objective import loss_mode
from mmrobust.report import markdown_table
from mmrobust.utils.files import write_atomically
from mmrobust.utils.validation import positive_int, to_pixels

# mmrobust's attacks in colours, the peers' in grey.
METHODS = {
    'APGD, ranking': ('tab:red', '-'),
    'APGD': ('tab:blue', '-'),
    'ARES PGD': ('0.35', '--'),
    'ART PGD': ('0.35', ':'),
}
BENIGN = '(no attack)'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--detector',
        nargs=3,
        action='append',
        required=True,
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='may be given several times',
    )
    parser.add_argument('--ares', metavar='PATH', required=True)
    parser.add_argument('--art', metavar='PATH')
    parser.add_argument('--eps', nargs='+', default=[1, 2, 4, 8], help='pixel units')
    parser.add_argument(
        '--backwards', nargs='+', type=int, default=[10, 20, 50, 100, 200, 500]
    )
    parser.add_argument('--methods', nargs='+', choices=list(METHODS), default=METHODS)
    parser.add_argument('--num-images', type=int, default=32)
    parser.add_argument('--seed', type=int, default=0, help='of the starts')
    parser.add_argument('--out', default='work_dirs/peers/strength.json')
    return parser.parse_args()


def main() -> None:
    """Measures what is missing, and prints and draws all there is."""
    args = parse_args()
    ares, art = ares_attack(args.ares), art_packages(args.art)
    torch.set_num_threads(1)
    MMLogger.get_instance('peers', log_level='ERROR')
    for steps in args.backwards:
        positive_int(steps, '--backwards')
    out = Path(args.out)
    radii = [to_pixels(eps, '--eps') for eps in args.eps]
    report = read(out)
    known = {tuple(row['of']) for row in report['rows']}
    shown = []
    for name, config, checkpoint in args.detector:
        asked = argparse.Namespace(
            config=config,
            checkpoint=checkpoint,
            num_images=args.num_images,
            seed=args.seed,
            batch_size=1,
            losses=None,
            cfg_options=None,
            same_start=False,
        )
        digest = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()[:12]
        weights = (config, digest, args.num_images, args.seed)
        setup = set_up(asked)
        clean = [batch.images for batch in setup.batches]
        points = [(name, BENIGN, 0.0, 0)]
        for steps in args.backwards:
            for eps in radii:
                points += [(name, method, eps, steps) for method in args.methods]
        for point in points:
            shown.append([*point, *weights])
            if (*point, *weights) in known:
                continue
            _, method, asked.eps, asked.num_steps = point
            images, started = clean, time.process_time()
            if method != BENIGN:
                attack = PGD('linf', asked.eps, None, asked.num_steps)
                asked.step_size = attack.step_size
                asked.methods = [method]
                search = build(setup, asked, ares, art)[method]
                with loss_mode(setup.model):
                    images = [search(batch) for batch in setup.batches]
            row = {
                'of': [*point, *weights],
                'seconds': time.process_time() - started,
                'AP': setup.average_precision(images),
            }
            report['rows'].append(row)
            write_atomically(out, json.dumps(report, indent=1))
            print(row, flush=True)
    curves = gather([row for row in report['rows'] if row['of'] in shown])
    print(tables(curves))
    draw(curves).savefig(out.with_suffix('.png'), dpi=110)


def read(out: Path) -> dict[str, Any]:
    """Reads what is measured already.

    Raises:
        ConfigError: if the file is another one.
    """
    if not out.exists():
        return {'rows': [], 'machine': machine()}
    try:
        report: dict[str, Any] = json.loads(out.read_text())
        report['rows'].sort(key=lambda row: row['of'][3])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'--out {out} is no file of this script: {error}.') from None
    return report


Curves = dict[tuple[str, float], dict[str, dict[int, float]]]


def gather(rows: list[dict[str, Any]]) -> Curves:
    """AP by detector and eps, method, and number of backward passes."""
    found: Curves = {}
    benign = {row['of'][0]: row['AP'] for row in rows if row['of'][1] == BENIGN}
    for row in rows:
        name, method, eps, steps, *_ = row['of']
        if method != BENIGN:
            methods = found.setdefault((name, eps), {BENIGN: {0: benign[name]}})
            methods.setdefault(method, {})[steps] = row['AP']
    return dict(sorted(found.items(), key=lambda item: item[0]))


def tables(curves: Curves) -> str:
    """AP after each number of backward passes; a line per detector, eps and method."""
    steps = sorted(
        {k for rows in curves.values() for row in rows.values() for k in row}
    )
    lines = []
    for (name, eps), rows in curves.items():
        for method in (BENIGN, *METHODS):
            points = rows.get(method, {})
            cells = [f'{points[k]:.3f}' if k in points else '' for k in steps]
            lines.append([name, f'{eps:g}', method, *cells])
    return markdown_table(['detector', 'eps', 'attack', *map(str, steps)], lines)


def draw(curves: Curves) -> Figure:
    """One row of curves per detector, one column per eps."""
    names, radii = (list(dict.fromkeys(part)) for part in zip(*curves, strict=True))
    radii.sort()
    figure = Figure((3.2 * len(radii), 2.7 * len(names)), layout='constrained')
    axes = figure.subplots(len(names), len(radii), squeeze=False, sharex=True)
    for (name, eps), rows in curves.items():
        axis = axes[names.index(name)][radii.index(eps)]
        axis.set_title(f'{name}, eps {eps:g}', fontsize=9)
        for method, (color, style) in METHODS.items():
            points = sorted(rows.get(method, {}).items())
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    style,
                    color=color,
                    marker='.',
                    label=method,
                )
        axis.axhline(rows[BENIGN][0], color='tab:green', linewidth=1, label=BENIGN)
        axis.set_xscale('log')
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel('backward passes per image')
    for row in axes:
        row[0].set_ylabel('box mAP')
    axes[0][0].legend(fontsize=7)
    return figure


if __name__ == '__main__':
    cli.run(main)
