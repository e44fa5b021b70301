"""Every training method at equal cost, under attacks, patches and corruptions.

    python experiments/methods/run.py

A standard detector is trained first, then fine-tuned by each method, with every seed.
Fine-tuning costs the same for all, counted in forward and backward passes: a method
that attacks a batch before it learns from it makes fewer updates. Interrupted, it goes
on where it was; a row is added to records.json when it is complete.
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
from mmrobust.errors import ConfigError
from mmrobust.utils.files import write_atomically
from tables import METRICS, tables

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
# Config, stages (updates, learning rate) of the standard detector, rate of fine-tuning,
# eps of the training, images of a batch if not the config's. A DETR takes longer.
TASKS: dict[str, dict[str, Any]] = {
    'fcos': {
        'config': CONFIGS / 'standard_fcos.py',
        'batch_size': 16,
        'stages': ((1200, 2e-3),),
        'lr': 1e-3,
        'eps': 8,
    },
    'faster-rcnn': {
        'config': CONFIGS / 'standard_faster-rcnn.py',
        'stages': ((1200, 2e-3),),
        'lr': 1e-3,
        'eps': 8,
    },
    'dn-detr': {
        'config': CONFIGS / 'standard_dn-detr.py',
        'stages': ((1200, 2e-3), (4000, 1e-3)),
        'lr': 1e-3,
        'eps': 8,
    },
}
RADII = {4: (1, 2, 4, 8), 8: (2, 4, 8)}


def methods(eps: float) -> dict[str, tuple[dict[str, Any], float]]:
    """Adversary, and passes (forward and backward) per update, of each method."""
    mixture = {'name': 'mixed', 'of': ['total', 'mislabel', 'dag', 'vanish']}
    pgd = {'type': 'PGDAdversary', 'eps': eps, 'num_steps': 2}
    found: dict[str, tuple[dict[str, Any], float]] = {
        'standard': ({'type': 'NoAdversary'}, 1),
        'FreeAT': (
            {'type': 'FreeAdversary', 'eps': eps, 'replays': 4, 'carry': 'run'},
            1,
        ),
        'PGD-AT': (pgd, 3),
        'mixed': ({**pgd, 'objective': mixture}, 3),
        'PBCAT': ({'type': 'PBCATAdversary', 'eps': eps, 'replays': 8}, 2),
        'MTD': ({'type': 'MTDAdversary', 'eps': eps}, 1 + 2 + 2 / 3),
        'CWAT': ({'type': 'CWATAdversary', 'eps': eps}, 2),
    }
    if eps != 4:  # the radius outside of patches in its paper
        found['PBCAT, eps 4'] = ({'type': 'PBCATAdversary', 'eps': 4, 'replays': 8}, 2)
    return found


def attacks(eps: float) -> dict[str, Any]:
    """What a detector is evaluated under."""
    from mmrobust.corruptions import BENCHMARK

    pgd = {'type': 'mmrobust.PGD', 'eps': eps, 'num_steps': 10}
    found: dict[str, Any] = {
        'noise': {'type': 'mmrobust.RandomNoise', 'eps': eps},
        'pgd': pgd,
    }
    for radius in RADII[eps]:
        found[f'ensemble-{radius}'] = {
            'type': 'mmrobust.Ensemble',
            'version': 'fast',
            'eps': radius,
        }
    found['patch'] = {'type': 'mmrobust.Patch', 'size': 0.1, 'num_steps': 20}
    for name in BENCHMARK:
        found[name] = {'type': 'mmrobust.Corruption', 'name': name, 'severity': 3}
    return found


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--work-dir', default='work_dirs/methods')
    parser.add_argument('--task', default='fcos', choices=list(TASKS))
    parser.add_argument('--methods', nargs='+', choices=list(methods(8)))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--budget', type=int, default=800, help='passes of each')
    parser.add_argument('--num-images', type=int, default=40, help='of the evaluation')
    return parser.parse_args()


def main() -> None:
    """Runs what is missing of the grid and writes the tables."""
    args = parse_args()
    cli.check_work_dir(args.work_dir)
    task = {'weights': None, **TASKS[args.task]}
    task |= {'name': args.task, 'budget': args.budget, 'images': args.num_images}
    run_methods(task, args.methods, args.seeds, Path(args.work_dir) / args.task)


def run_methods(
    task: dict[str, Any], chosen: list[str] | None, seeds: list[int], work_dir: Path
) -> None:
    """Runs what is missing of a task's methods; prints their table."""
    unknown = [name for name in chosen or () if name not in methods(task['eps'])]
    if unknown:
        raise ConfigError(f'the method {unknown[0]!r} is unknown.')
    records = work_dir / 'records.json'
    rows = {
        (row['method'], row['seed']): row
        for row in (json.loads(records.read_text()) if records.is_file() else [])
    }
    for method in chosen or methods(task['eps']):
        for seed in seeds:
            folder = work_dir / str(seed)
            start = standard(task, seed, folder / 'start')
            name = ''.join(c if c.isalnum() else '-' for c in method.lower())
            rows[method, seed] = fine_tuned(task, method, seed, start, folder / name)
            write_atomically(records, json.dumps(list(rows.values()), indent=1))
    print(tables(list(rows.values())))


def load(task: dict[str, Any], seed: int, folder: Path) -> Config:
    """The detector's config, for training it alone."""
    cfg = Config.fromfile(task['config'])
    cfg.work_dir = str(folder)
    cfg.experiment_name = '_'.join(folder.parts[-3:])
    cfg.randomness = {'seed': seed}
    cfg.default_hooks.pop('attack_visualization', None)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.train_cfg.pop('val_interval', None)
    if 'batch_size' in task:
        cfg.train_dataloader.batch_size = task['batch_size']
    if 'data' in task:
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            loader.dataset.data_root = task['data']
    cfg.test_dataloader.dataset.indices = task['images']
    return cfg


def standard(task: dict[str, Any], seed: int, folder: Path) -> Path:
    """Trains the standard detector; returns its checkpoint."""
    checkpoint = Path(task['weights']) if task['weights'] else None
    for number, (updates, rate) in enumerate(task['stages']):
        cfg = load(task, seed, folder / str(number))
        checkpoint = train(cfg, updates, rate, checkpoint)
    assert checkpoint is not None
    return checkpoint


def train(cfg: Config, updates: int, rate: float, start: Path | None) -> Path:
    """Trains, or goes on where it was interrupted; returns the checkpoint.

    The schedule is a warm-up, then half a cosine.
    """
    folder = Path(cfg.work_dir)
    checkpoint = folder / f'iter_{updates}.pth'
    if not checkpoint.exists():
        started = time.monotonic()
        cfg.train_cfg.max_iters = cfg.param_scheduler[1].end = updates
        cfg.optim_wrapper.optimizer.lr = rate
        cfg.resume = (folder / 'last_checkpoint').exists()
        # mmengine takes load_from as what to resume when both are given.
        cfg.load_from = None if cfg.resume or start is None else str(start)
        Runner.from_cfg(cfg).train()
        seconds = json.dumps(time.monotonic() - started)
        write_atomically(folder / 'seconds.json', seconds)
    return checkpoint


def attacked(cfg: Config, checkpoint: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The report of an evaluation, which goes on where it was interrupted."""
    path = Path(cfg.work_dir) / 'robustness.json'
    report = json.loads(path.read_text()) if path.exists() else {'complete': False}
    wanted = cfg.test_dataloader.dataset.indices
    if report['complete'] and report['dataset']['num_images'] != wanted:
        raise ConfigError(
            f'{path} is of {report["dataset"]["num_images"]} images and not of '
            f'{wanted}: give another --work-dir for another --num-images.'
        )
    if not report['complete']:
        cfg.test_cfg = ConfigDict(type='mmrobust.AttackTestLoop', attacks=asked)
        # Draws of the evaluation are the same for all.
        cfg.randomness = {'seed': 0}
        cfg.resume, cfg.load_from = False, str(checkpoint)
        Runner.from_cfg(cfg).test()
        report = json.loads(path.read_text())
    return report


def metrics_of(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of each pass of a report."""
    passes = {'benign': report['benign']['metrics']}
    passes.update({attack['name']: attack['metrics'] for attack in report['attacks']})
    # CocoMetric has no figures where nothing at all is detected.
    return {
        name: {key: metrics.get(f'coco/{key}', 0.0) for key in METRICS}
        for name, metrics in passes.items()
    }


def adversarial(adversary: dict[str, Any]) -> ConfigDict:
    """The train loop with an adversary of the package."""
    named = {**adversary, 'type': f'mmrobust.{adversary["type"]}'}
    return ConfigDict(type='mmrobust.AdvIterBasedTrainLoop', adversary=named)


def fine_tuned(
    task: dict[str, Any], method: str, seed: int, start: Path, folder: Path
) -> dict[str, Any]:
    """Fine-tunes and attacks a detector; returns its record."""
    adversary, passes = methods(task['eps'])[method]
    updates = round(task['budget'] / passes)
    cfg = load(task, seed, folder)
    cfg.train_cfg = adversarial(adversary)
    checkpoint = train(cfg, updates, task['lr'], start)
    report = attacked(cfg, checkpoint, attacks(task['eps']))
    return {
        'task': task['name'],
        'method': method,
        'seed': seed,
        'updates': updates,
        'passes': task['budget'],
        'seconds': round(json.loads((folder / 'seconds.json').read_text())),
        'images': report['dataset']['num_images'],
        'metrics': metrics_of(report),
    }


if __name__ == '__main__':
    cli.run(main)
