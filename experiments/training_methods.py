"""Every training method on three detectors at equal cost, on the embedded digits.

    python experiments/training_methods.py --work-dir work_dirs/training_methods

A standard detector is trained first, then fine-tuned by each method. Fine-tuning costs
the same for all, counted in forward and backward passes: a method that attacks a batch
before it learns from it makes fewer updates. Interrupted, it goes on where it was; the
table is rewritten after every run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmrobust import cli
from mmrobust.report import markdown_table
from mmrobust.utils.files import write_atomically

EPS = 8
# Stages of the standard detectors: updates and learning rate. A DETR takes longer.
DETECTORS = {
    'faster-rcnn': ((1200, 2e-3),),
    'fcos': ((1200, 2e-3),),
    'dn-detr': ((1200, 2e-3), (4000, 1e-3)),
}
# Adversary, and passes (forward and backward) per update.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    'standard': ({'type': 'NoAdversary'}, 1),
    'FreeAT, m = 4': (
        {'type': 'FreeAdversary', 'eps': EPS, 'replays': 4, 'carry': 'run'},
        1,
    ),
    'PGD-AT, 2 steps': ({'type': 'PGDAdversary', 'eps': EPS, 'num_steps': 2}, 3),
    'MTD': ({'type': 'MTDAdversary', 'eps': EPS}, 1 + 2 + 2 / 3),
    'CWAT': ({'type': 'CWATAdversary', 'eps': EPS}, 2),
}
PGD = {'type': 'mmrobust.PGD', 'eps': EPS, 'num_steps': 10}
ATTACKS = {
    'noise': {'type': 'mmrobust.RandomNoise', 'eps': EPS},
    'pgd': PGD,
    'cls': {**PGD, 'objective': 'cls'},
    'reg': {**PGD, 'objective': 'reg'},
}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/training_methods')
    parser.add_argument(
        '--detectors', nargs='+', default=list(DETECTORS), choices=list(DETECTORS)
    )
    parser.add_argument(
        '--budget', type=int, default=800, help='passes of each fine-tuning'
    )
    return parser.parse_args()


def main() -> None:
    """Runs what is missing of the grid and writes the table."""
    args = parse_args()
    work_dir = Path(args.work_dir)
    cli.check_work_dir(args.work_dir)
    rows: list[dict[str, Any]] = []
    for detector in args.detectors:
        start = standard(detector, work_dir / detector / 'start')
        for method in METHODS:
            folder = work_dir / detector / method.split(',')[0].lower()
            rows.append(fine_tuned(detector, method, start, folder, args.budget))
            write_atomically(work_dir / 'table.json', json.dumps(rows, indent=1))
            write_atomically(work_dir / 'table.md', table(rows))
    print(table(rows))


def load(detector: str, folder: Path) -> Config:
    """The detector's config on the digits."""
    configs = Path(__file__).resolve().parents[1] / 'configs' / 'demo'
    cfg = Config.fromfile(configs / f'standard_{detector}.py')
    cfg.work_dir = str(folder)
    cfg.experiment_name = '_'.join(folder.parts[-2:])
    del cfg.default_hooks['attack_visualization']
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    return cfg


def set_length(cfg: Config, updates: int) -> None:
    """Stretches the schedule of the config: a warm-up, then half a cosine."""
    cfg.train_cfg.max_iters = updates
    cfg.param_scheduler[1].end = updates


def standard(detector: str, folder: Path) -> Path:
    """Trains the standard detector; returns its checkpoint."""
    checkpoint = None
    for number, (updates, rate) in enumerate(DETECTORS[detector]):
        stage = folder / str(number)
        cfg = load(detector, stage)
        cfg.train_cfg.pop('val_interval')
        cfg.optim_wrapper.optimizer.lr = rate
        set_length(cfg, updates)
        start, checkpoint = checkpoint, stage / f'iter_{updates}.pth'
        if not checkpoint.exists():
            start_from(cfg, start)
            Runner.from_cfg(cfg).train()
    assert checkpoint is not None
    return checkpoint


def start_from(cfg: Config, checkpoint: Path | None) -> None:
    """Goes on where an earlier run was interrupted, or starts from a checkpoint."""
    cfg.resume = (Path(cfg.work_dir) / 'last_checkpoint').exists()
    # mmengine takes load_from as what to resume when both are given.
    cfg.load_from = None if cfg.resume or checkpoint is None else str(checkpoint)


def fine_tuned(
    detector: str, method: str, start: Path, folder: Path, budget: int
) -> dict[str, Any]:
    """Fine-tunes and attacks a detector; returns its row of the table."""
    report = folder / 'robustness.json'
    adversary, passes = METHODS[method]
    updates = round(budget / passes)
    cfg = load(detector, folder)
    cfg.train_cfg = ConfigDict(
        type='mmrobust.AdvIterBasedTrainLoop',
        max_iters=updates,
        adversary={**adversary, 'type': f'mmrobust.{adversary["type"]}'},
    )
    set_length(cfg, updates)
    cfg.optim_wrapper.optimizer.lr = 1e-3
    cfg.test_cfg.attacks = ConfigDict(ATTACKS)
    checkpoint = folder / f'iter_{updates}.pth'
    clock = folder / 'seconds.json'
    if not checkpoint.exists():
        started = time.monotonic()
        start_from(cfg, start)
        Runner.from_cfg(cfg).train()
        write_atomically(clock, json.dumps(time.monotonic() - started))
    if not (report.exists() and json.loads(report.read_text())['complete']):
        cfg.resume, cfg.load_from = False, str(checkpoint)
        Runner.from_cfg(cfg).test()
    found = json.loads(report.read_text())
    metrics = {'benign': found['benign']['metrics']}
    metrics.update({a['name']: a['metrics'] for a in found['attacks']})
    return {
        'detector': detector,
        'method': method,
        'updates': updates,
        'seconds': round(json.loads(clock.read_text())),
        **{name: m['coco/bbox_mAP'] for name, m in metrics.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = ['benign', *ATTACKS]
    columns = ['detector', 'training', 'updates', 'seconds', *names]
    cells = [
        [row['detector'], row['method'], row['updates'], row['seconds']]
        + [f'{row[name]:.3f}' for name in names]
        for row in rows
    ]
    return markdown_table(columns, cells, 'llr') + '\n'


if __name__ == '__main__':
    cli.run(main)
