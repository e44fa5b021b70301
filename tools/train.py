"""Trains a detector, adversarially where the config says so."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Callable

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.device import get_device
from mmrobust import cli
from mmrobust.weights import (
    check_checkpoint,
    check_initial_weights,
    check_resumable,
    read_checkpoint,
)
from mmrobust.recipe import BACKBONES, METHODS, PRESETS, robustify, summary
from mmrobust.errors import ConfigError, doing
from mmrobust.utils.configs import naming_bad_json
from mmrobust.utils.models import bare_model
from mmrobust.utils.runner import build_runner
from mmrobust.distributed import start_processes

_ROBUST_ONLY = (
    'eps',
    'norm',
    'replays',
    'num_steps',
    'schedule',
    'preset',
    'backbone',
    'backbone_weights',
)
_OF_TRAINING = ('amp', 'auto_scale_lr', 'resume')


def parse_args() -> argparse.Namespace:
    """Reads the command line: mmdet's own flags."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument('config', help="config file, or a name like 'mmdet::fcos/...'")
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train with automatic mixed precision: float16 on a GPU, else bfloat16',
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
    cli.add_speed_options(
        parser.add_argument_group('speed', 'Of adversarial updates and their attacks.')
    )
    group = parser.add_argument_group(
        'robust',
        'Make a standard config robust first. Sizes are in pixel units of 0-255: 4, or '
        '4/255.',
    )
    group.add_argument(
        '--robust', metavar='METHOD', help=f'one of: {", ".join(METHODS)}'
    )
    group.add_argument('--eps', help='radius of the perturbation (default 4)')
    group.add_argument('--norm', help='linf (default), l2 or l1')
    group.add_argument(
        '--replays', type=int, help='updates per batch (free: default 4; pbcat: 8)'
    )
    group.add_argument(
        '--num-steps',
        type=int,
        help='steps of the attack in training (pgd, mixed: default 3; mtd, cwat: 1)',
    )
    group.add_argument(
        '--schedule',
        type=float,
        help="updates relative to the config's own (default 2 for free, 4 for pbcat, "
        'else 1)',
    )
    group.add_argument('--preset', help=f'one of: {", ".join(PRESETS)}')
    group.add_argument('--backbone', help=f'swap in one of: {", ".join(BACKBONES)}')
    group.add_argument(
        '--backbone-weights', help="file or URL of the backbone's weights, or none"
    )
    group.add_argument(
        '--dump', metavar='FILE', help='write the resulting config and stop'
    )
    return parser.parse_args()


def converter(args: argparse.Namespace) -> Callable[[Config], Config] | None:
    """What ``--robust`` and its options do to a config.

    What changes is printed, and kept as ``args.changes``.

    Raises:
        ConfigError: for one of the options without ``--robust``, or one that
            ``--dump`` ignores.
    """
    given = cli.given(args, _ROBUST_ONLY)
    if args.dump is not None and not args.dump.endswith('.py'):
        raise ConfigError(f'--dump {args.dump!r} must be a .py file.')
    if args.dump is not None and os.path.realpath(args.dump) == os.path.realpath(
        args.config
    ):
        raise ConfigError(f'--dump {args.dump!r} is CONFIG itself: give another file.')
    unused = [name for name in _OF_TRAINING if getattr(args, name)]
    if args.dump is not None and unused:
        raise ConfigError(
            f'--{unused[0].replace("_", "-")} has no effect on the config that --dump '
            'writes: give it to the training.'
        )
    if args.robust is not None:

        def convert(cfg: Config) -> Config:
            robust = robustify(cfg, args.robust, **given)
            text = '\n'.join(['Changed in the config:', *summary(cfg, robust)])
            args.changes = text
            if os.environ.get('RANK', '0') == '0':
                print(text)
            return robust

        return convert
    if given or args.dump is not None:
        option = next(iter(given), 'dump').replace('_', '-')
        raise ConfigError(f'--{option} needs --robust METHOD.')
    return None


def accelerate(cfg: Config, args: argparse.Namespace) -> Config:
    """Puts the options of speed into the training loop.

    Raises:
        ConfigError: if it is none that takes them.
    """
    if speed := cli.speed_of(args):
        if 'adversary' not in (cfg.get('train_cfg') or {}):
            raise ConfigError(
                f'--{next(iter(speed)).replace("_", "-")} is for adversarial training: '
                'add --robust METHOD.'
            )
        cfg.train_cfg.speed = {**(cfg.train_cfg.get('speed') or {}), **speed}
    return cfg


def dump(cfg: Config, path: str, changes: str) -> None:
    """Writes a config in one piece, with what was changed as a comment.

    Raises:
        ConfigError: if the file cannot be written.
    """
    folder = os.path.dirname(path) or '.'
    cli.check_work_dir(folder, 'folder of --dump', '--dump')
    partial = os.path.join(folder, f'.{os.getpid()}.{os.path.basename(path)}')
    cfg.dump(partial)
    with open(partial, encoding='utf-8') as file:
        content = file.read()
    with open(partial, 'w', encoding='utf-8') as file:
        file.write(textwrap.indent(changes, '# ') + f'\n{content}')
    os.replace(partial, path)
    print(f'Wrote {path}; train with: python tools/train.py {path}')


def use_mixed_precision(cfg: Config) -> None:
    """As mmdet's ``--amp``; without a GPU, bfloat16 on the CPU."""
    if get_device() != 'cpu':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
        return
    for key in ('loss_scale', 'dtype', 'use_fsdp'):  # AmpOptimWrapper's alone
        cfg.optim_wrapper.pop(key, None)
    cfg.optim_wrapper.type = 'mmrobust.BFloat16OptimWrapper'


def main() -> None:
    """Reads the command line and trains."""
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    convert = converter(args)
    if args.dump is not None:
        cfg = accelerate(cli.configure(args, convert), args)
        return dump(cfg, args.dump, args.changes)
    cfg = accelerate(cli.load_config(args, convert), args)
    start_processes(cfg)
    train(cfg, args)


def train(cfg: Config, args: argparse.Namespace) -> None:
    """Trains with a config and the rest of the command line."""
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise ConfigError(f'config {args.config!r} has no {key} to train with.')
    if args.amp:
        use_mixed_precision(cfg)
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
        checkpoint = read_checkpoint(cfg.load_from)
        if cfg.get('resume'):
            check_resumable(cfg.load_from, checkpoint)
    check_initial_weights(cfg.model)
    runner = build_runner(cfg)
    if cfg.get('load_from') and cfg.get('resume'):
        check_checkpoint(cfg.load_from, bare_model(runner.model))
    with doing('training'), naming_bad_json(cfg):
        runner.train()


if __name__ == '__main__':
    cli.run(main)
