"""The papers' claims on photographs: YOLOX-nano, from COCO to pictures of blood cells.

    python experiments/methods/photographs.py --data bccd/ --coco coco/ \
        --weights yolox_nano_coco.pth --study methods

Training methods at equal cost, backbones and heads, and optimizers with the backbone's
learning rate, for which the rate is chosen on validation pictures. Interrupted, it goes
on where it was; a row is added to the study's records.json when it is complete.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
from mmengine.config import Config
from mmrobust import cli
from mmrobust.errors import ConfigError
from mmrobust.utils.files import write_atomically
from mmrobust.utils.validation import positive_int
from run import adversarial, attacked, load, metrics_of, run_methods, train
from tables import study_table

CONFIGS = Path(__file__).with_name('configs')
EPS = 4
METHODS: dict[str, Any] = {
    'name': 'blood-cells',
    'config': CONFIGS / 'blood-cells.py',
    'stages': ((200, 1e-3),),
    'lr': 5e-4,
    'eps': EPS,
    'budget': 300,
    'images': 24,
}
UPDATES = 600  # of a detector of which nothing but the backbone has been trained
UPSTREAM = (600, 5e-4)  # updates and rate of the COCO detector's adversarial training
FREE = {'type': 'FreeAdversary', 'eps': EPS, 'replays': 4, 'carry': 'run'}
PGD = {'type': 'mmrobust.PGD', 'eps': EPS, 'num_steps': 10}
SHORT = {
    'pgd': PGD,
    'ensemble': {'type': 'mmrobust.Ensemble', 'version': 'fast', 'eps': EPS},
}
ADAMW, SGD = (3e-4, 1e-3, 3e-3), (3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Row:
    """A way to train the detector of blood cells.

    Attributes:
        start: whose backbone: ``'coco'``, ``'robust'`` or ``'random'``.
        rates: learning rates, of which the best on validation pictures is taken.
        backbone: its learning rate as a share of the others'; 0: frozen.
        adversary: of the training, FreeAT unless it is given.
        optimizer: ``'AdamW'`` or ``'SGD'``.
        head: ``'yolox'``, or a config of ``configs/`` with another one.
    """

    start: str
    rates: tuple[float, ...] = (1e-3,)
    backbone: float = 1.0
    adversary: dict[str, Any] = field(default_factory=lambda: dict(FREE))
    optimizer: str = 'AdamW'
    head: str = 'yolox'


STANDARD = {'type': 'NoAdversary'}
STUDIES: dict[str, dict[str, Row]] = {
    # 2305.17438's first claim: where the backbone comes from.
    'backbones': {
        'standard training, COCO': Row('coco', adversary=STANDARD),
        'FreeAT, random': Row('random'),
        'FreeAT, COCO': Row('coco'),
        'FreeAT, robust': Row('robust'),
    },
    # Its recipe: AdamW, and a tenth of the rate for the backbone.
    'rates': {
        f'{optimizer}, {words}': Row('robust', rates, share, optimizer=optimizer)
        for optimizer, rates in (('AdamW', ADAMW), ('SGD', SGD))
        for words, share in (('x 1', 1.0), ('x 0.1', 0.1), ('frozen', 0.0))
    },
    # Heads end close together: the backbone matters more.
    'heads': {
        f'{head}, {start}': Row(start, head=head)
        for head in ('yolox', 'fcos', 'atss')
        for start in ('coco', 'robust')
    },
}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', required=True, help='folder of BCCD (VOC layout)')
    parser.add_argument('--weights', required=True, help='COCO-trained YOLOX-nano')
    parser.add_argument('--coco', help='folder of COCO, or COCO128, in its layout')
    parser.add_argument(
        '--study', choices=['methods', *STUDIES], default='methods', help='what to run'
    )
    parser.add_argument('--rows', nargs='+', help='names of rows, else all')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--num-images', type=int, default=24, help='of evaluations')
    parser.add_argument('--work-dir', default='work_dirs/photographs')
    return parser.parse_args()


def main() -> None:
    """Runs what is missing of a study and prints its table."""
    args = parse_args()
    work_dir = Path(args.work_dir)
    cli.check_work_dir(args.work_dir)
    positive_int(args.num_images, '--num-images')
    if args.study != 'methods' and args.coco is None:
        raise ConfigError(f'--study {args.study} needs --coco.')
    for path in (args.data, args.weights, args.coco):
        if path and not Path(path).exists():
            raise ConfigError(f'{path} is not there.')
    if args.study == 'methods':
        task = {**METHODS, 'data': args.data, 'weights': args.weights}
        task['images'] = args.num_images
        methods = ['standard', 'FreeAT', 'PGD-AT', 'mixed', 'PBCAT']
        run_methods(task, args.rows or methods, args.seeds, work_dir / task['name'])
        return
    unknown = [name for name in args.rows or () if name not in STUDIES[args.study]]
    if unknown:
        raise ConfigError(
            f'--rows {unknown[0]!r} is unknown: choose from '
            f'{"; ".join(STUDIES[args.study])}.'
        )
    records = work_dir / args.study / 'records.json'
    records.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(records.read_text()) if records.exists() else {}
    for name in args.rows or STUDIES[args.study]:
        row = STUDIES[args.study][name]
        rate, tried = choose_rate(args, row)
        for seed in args.seeds:
            cfg, checkpoint = trained(args, row, rate, seed)
            report = attacked(cfg, checkpoint, SHORT)
            metrics = metrics_of(report)
            settings = {'rate': rate, 'tried': tried, **asdict(row)}
            rows[f'{name}, seed {seed}'] = {
                **settings,
                'name': name,
                'seed': seed,
                'images': report['dataset']['num_images'],
                'metrics': metrics,
            }
            write_atomically(records, json.dumps(rows, indent=1))
    print(study_table(list(rows.values())))


def upstream(args: argparse.Namespace, start: str) -> Path | None:
    """The checkpoint whose backbone a row starts from."""
    if start == 'random':
        return None
    if start == 'coco':
        return Path(args.weights)
    task = {**METHODS, 'config': CONFIGS / 'coco.py', 'data': args.coco}
    cfg = load(task, 0, Path(args.work_dir) / 'robust')
    cfg.train_cfg = adversarial(FREE)
    return train(cfg, *UPSTREAM, Path(args.weights))


def config(args: argparse.Namespace, row: Row, seed: int, folder: Path) -> Config:
    """The config of a row, without its rate."""
    name = {'yolox': 'blood-cells'}.get(row.head, f'blood-cells-{row.head}')
    task = {**METHODS, 'config': CONFIGS / f'{name}.py', 'data': args.data}
    task['images'] = args.num_images
    cfg = load(task, seed, folder)
    cfg.train_cfg = adversarial(row.adversary)
    checkpoint = upstream(args, row.start)
    if checkpoint:
        weights = {'type': 'Pretrained', 'prefix': 'backbone.'}
        cfg.model.backbone.init_cfg = {**weights, 'checkpoint': str(checkpoint)}
    if row.optimizer == 'SGD':
        sgd = {'type': 'SGD', 'momentum': 0.9, 'weight_decay': 5e-4, 'lr': 0}
        cfg.optim_wrapper.optimizer = sgd
    if row.backbone == 0:
        cfg.model.backbone.update(frozen_stages=4, norm_eval=True)
    elif row.backbone != 1:
        cfg.optim_wrapper.constructor = 'mmrobust.BackboneLrOptimWrapperConstructor'
        cfg.optim_wrapper.paramwise_cfg.backbone_lr_mult = row.backbone
    return cfg


def trained(
    args: argparse.Namespace, row: Row, rate: float, seed: int
) -> tuple[Config, Path]:
    """The detector of a row, trained once whichever studies have it."""
    words = [row.head, row.adversary['type'], row.start, row.optimizer]
    name = '-'.join(map(str, [*words, row.backbone, rate])).lower()
    cfg = config(args, row, seed, Path(args.work_dir) / 'detectors' / str(seed) / name)
    return cfg, train(cfg, UPDATES, rate, None)


def choose_rate(args: argparse.Namespace, row: Row) -> tuple[float, dict[str, float]]:
    """The rate with the highest mAP under PGD on validation pictures, and all.

    With seed 0 whichever seeds are asked for, so that all have the same rate.
    """
    if len(row.rates) == 1:
        return row.rates[0], {}
    tried = {}
    for rate in row.rates:
        cfg, checkpoint = trained(args, row, rate, 0)
        cfg = copy.deepcopy(cfg)
        cfg.work_dir += '/validation'
        cfg.experiment_name += '_validation'
        cfg.test_dataloader.dataset.ann_file = 'ImageSets/Main/val.txt'
        report = attacked(cfg, checkpoint, {'pgd': PGD})
        tried[str(rate)] = metrics_of(report)['pgd']['bbox_mAP']
    return max(row.rates, key=lambda rate: tried[str(rate)]), tried


if __name__ == '__main__':
    cli.run(main)
