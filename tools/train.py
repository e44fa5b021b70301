"""Trains a detector, adversarially where the config says so."""

from __future__ import annotations

import argparse

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmrobust import cli
from mmrobust.checkpoints import read_checkpoint
from mmrobust.errors import ConfigError


def parse_args() -> argparse.Namespace:
    """Reads the command line: mmdet's own flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--amp', action='store_true', help='train with automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the latest one in '
        'the work dir',
    )
    cli.add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    """Builds the runner and trains."""
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    cfg = cli.load_config(args)
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise ConfigError(f'config {args.config!r} has no {key} to train with.')
    if args.amp:
        if not torch.cuda.is_available():
            raise ConfigError('--amp needs a GPU, and torch sees none: leave it out.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if not {'enable', 'base_batch_size'} <= set(cfg.get('auto_scale_lr') or {}):
            raise ConfigError(
                '--auto-scale-lr needs auto_scale_lr=dict(enable=..., '
                'base_batch_size=...) in the config.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        cfg.resume, cfg.load_from = True, None
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    if cfg.get('load_from') and '://' not in cfg.load_from:
        read_checkpoint(cfg.load_from)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.train()


if __name__ == '__main__':
    cli.run(main)
