"""The whole path on an embedded dataset: train twice, attack both, compare.

The same small FCOS is trained on handwritten digits with the same number of updates,
once normally and once with FreeAT; both are then measured without attack, under random
noise and under PGD. Both run side by side, each in a process of one thread, so that
neither waits for threads that other programs hold up. Needs no download and no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from mmengine.config import Config
from mmrobust import cli
from mmrobust.utils.validation import positive_int
from mmrobust.utils.files import write_atomically

ROWS = ('standard', 'robust')
METRIC = 'coco/bbox_mAP'
GRID_IMAGES = 3  # the first ones of the set, not chosen


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        '--work-dir',
        default='work_dirs/demo',
        help='folder of the results; a run that was interrupted goes on from there',
    )
    # What a process of one of the two rows is told.
    parser.add_argument('--row', choices=ROWS, help=argparse.SUPPRESS)
    cli.add_cfg_options(parser)
    return parser


def main() -> None:
    """Trains and measures both detectors, then shows the comparison."""
    args = make_parser().parse_args()
    work_dir = Path(args.work_dir)
    cli.check_work_dir(str(work_dir))
    if args.row:
        train_and_measure(configure(args.row, work_dir, args.cfg_options))
        return
    for row in ROWS:
        configure(row, work_dir, args.cfg_options)
    started = time.monotonic()
    side_by_side()
    reports = {
        row: json.loads((work_dir / row / 'robustness.json').read_text('utf-8'))
        for row in ROWS
    }
    table = comparison(reports)
    grid = work_dir / 'comparison.png'
    cv2.imwrite(str(grid), picture_grid(work_dir))
    seconds = round(time.monotonic() - started)
    took = datetime.timedelta(seconds=seconds)
    text = (
        f'# Standard against robust training\n\n{table}\n\n![comparison]({grid.name})\n'
    )
    write_atomically(work_dir / 'comparison.md', text)
    print(f'\n{table}\n\nBox mAP on the validation images; eps in units of 0-255.')
    print(f'Took {took}.\nPictures: {grid}')
    for row in ROWS:
        print(f'Report:   {work_dir / row / "robustness.html"}')


def side_by_side() -> None:
    """Runs this script once for each row, with what it was given, and waits for both.

    Ends like a row that fails; the other one goes on from its checkpoint next time.
    """
    command = [sys.executable, __file__, *sys.argv[1:], '--row']
    environment = {'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1', **os.environ}
    processes, printers = {}, []
    try:
        for row in ROWS:
            processes[row] = subprocess.Popen(
                [*command, row],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
            )
            output = processes[row].stdout
            printers.append(threading.Thread(target=show, args=(row, output)))
            printers[-1].start()
        while any(process.poll() is None for process in processes.values()):
            if any(process.poll() for process in processes.values()):
                break
            time.sleep(0.2)
    finally:
        for process in processes.values():
            process.terminate()
        for printer in printers:
            printer.join()
    failed = [code for process in processes.values() if (code := process.wait())]
    if failed:
        sys.exit(max(failed))  # not what the other one, which was ended, says


def show(row: str, output: IO[str] | None) -> None:
    """Prints what a process writes, line by line, with its row in front."""
    for line in output or ():
        print(f'{row:8} | {line}', end='', flush=True)


def configure(row: str, work_dir: Path, options: dict | None) -> Config:
    """Reads the config of one of the two detectors.

    Args:
        row: ``'standard'`` or ``'robust'``, the prefix of a config in configs/demo.
        work_dir: folder that has one for each of them.
        options: overrides as of ``--cfg-options``.
    """
    folder = Path(__file__).resolve().parents[1] / 'configs' / 'demo'
    cfg = Config.fromfile(folder / f'{row}_fcos.py')
    cli.merge_options(cfg, options or {})
    cli.check_sections(cfg)
    positive_int((cfg.train_cfg or {}).get('max_iters'), 'train_cfg.max_iters')
    cfg.work_dir = str(work_dir / row)
    return cfg


def train_and_measure(cfg: Config) -> None:
    """Trains a detector, or goes on where it stopped, and tests it."""
    from mmrobust.utils.runner import build_runner  # brings torch

    cfg.resume = True
    trained = Path(cfg.work_dir) / f'iter_{cfg.train_cfg.max_iters}.pth'
    if not trained.exists():
        build_runner(cfg, training=True).train()
    # A new runner, so that the report names the checkpoint that it measured.
    cfg.resume, cfg.load_from = False, str(trained)
    build_runner(cfg).test()


def comparison(reports: dict[str, dict]) -> str:
    """The two reports as one Markdown table, a row for each detector."""
    from mmrobust.report import markdown_table  # brings torch

    first = next(iter(reports.values()))
    columns = ['training', 'benign'] + [attack['name'] for attack in first['attacks']]
    rows = []
    for row, report in reports.items():
        metrics = [report['benign']['metrics']]
        metrics += [attack['metrics'] for attack in report['attacks']]
        rows.append([row, *(f'{metric[METRIC]:.3f}' for metric in metrics)])
    return markdown_table(columns, rows)


def picture_grid(work_dir: Path) -> np.ndarray:
    """Stacks the pictures of the strongest attack on either detector, image by image.

    Args:
        work_dir: with one folder per detector.

    Returns:
        BGR picture, uint8.
    """
    pictures: dict[str, dict[str, Path]] = {}
    for row in ROWS:
        runs = sorted((work_dir / row).glob('*/vis_data/vis_image'))
        found = sorted(runs[-1].glob('attack_pgd_8_*.png'))
        pictures[row] = {path.stem.split('_')[-2]: path for path in found}
    shared = [name for name in pictures[ROWS[0]] if name in pictures[ROWS[1]]]
    strips = []
    for name in shared[:GRID_IMAGES]:
        for row in ROWS:
            picture = np.asarray(cv2.imread(str(pictures[row][name])))
            label = np.full((picture.shape[0], 130, 3), 255, np.uint8)
            cv2.putText(
                label, row, (8, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2, 16
            )
            strips.append(np.concatenate([label, picture], axis=1))
    return np.concatenate(strips)


if __name__ == '__main__':
    cli.run(main)
