"""Trains a detector, adversarially where the config says so."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mmengine.config import Config
from mmrobust import cli
from mmrobust.commands import conversion
from mmrobust.errors import ConfigError, doing
from mmrobust.names import listed, names
from mmrobust.utils.configs import naming_bad_json

_OF_TRAINING = ('amp', 'auto_scale_lr', 'resume')


def make_parser() -> cli.Parser:
    """Returns the parser, with mmdet's own flags."""
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
    parser.add_argument(
        '--dry-run',
        nargs='?',
        type=int,
        const=1,
        metavar='PROCESSES',
        help='make a few updates on made-up pictures, print what the training takes on '
        'so many processes, and stop; needs no data and keeps nothing',
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
    methods = names()['methods']
    robust = group.add_argument(
        '--robust', metavar='METHOD', help=f'one of: {listed("methods")}'
    )
    cli.suggest(robust, methods)
    conversion.add_options(group)
    group.add_argument(
        '--dump', metavar='FILE', help='write the resulting config and stop'
    )
    return parser


def converter(args: argparse.Namespace) -> Callable[[Config], Config] | None:
    """What ``--robust`` and its options do to a config.

    What changes is printed, and kept as ``args.changes``.

    Raises:
        ConfigError: for one of the options without ``--robust``, or one that
            ``--dump`` ignores.
    """
    given = cli.given(args, conversion.SETTINGS)
    if args.dump is not None:
        conversion.check_target(args.dump, args.config, '--dump')
    unused = [name for name in _OF_TRAINING if getattr(args, name)]
    if args.dump is not None and unused:
        raise ConfigError(
            f'--{unused[0].replace("_", "-")} has no effect on the config that --dump '
            'writes: give it to the training.'
        )
    if args.robust is not None:

        def convert(cfg: Config) -> Config:
            robust, args.changes = conversion.convert(cfg, args.robust, args)
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


def check_sections_of_training(cfg: Config, args: argparse.Namespace) -> None:
    """Makes sure that a config is one of a training."""
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise ConfigError(f'config {args.config!r} has no {key} to train with.')


def use_mixed_precision(cfg: Config) -> None:
    """As mmdet's ``--amp``; without a GPU, bfloat16 on the CPU."""
    from mmengine.device import get_device

    if get_device() != 'cpu':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
        return
    for key in ('loss_scale', 'dtype', 'use_fsdp'):  # AmpOptimWrapper's alone
        cfg.optim_wrapper.pop(key, None)
    cfg.optim_wrapper.type = 'mmrobust.BFloat16OptimWrapper'


def main() -> None:
    """Reads the command line and trains."""
    args = make_parser().parse_args()
    convert = converter(args)
    if args.dump is not None:
        cfg = accelerate(cli.configure(args, convert), args)
        return conversion.write(cfg, args.dump, args.changes, '--dump')
    if args.dry_run is not None:
        if args.launcher != 'none':
            raise ConfigError(
                '--dry-run is for one process: leave --launcher out, and give the '
                'number of processes as in --dry-run 8.'
            )
        cfg = accelerate(cli.configure(args, convert), args)
        check_sections_of_training(cfg, args)
        if args.amp:
            use_mixed_precision(cfg)
        from mmrobust.commands.dry_run import dry_run

        return print(dry_run(cfg, args.dry_run))
    cfg = accelerate(cli.load_config(args, convert), args)
    # With torch and mmdet behind it, for which --help and mistakes need not wait.
    from mmdet.utils import setup_cache_size_limit_of_dynamo
    from mmrobust.distributed import start_processes

    setup_cache_size_limit_of_dynamo()
    start_processes(cfg)
    train(cfg, args)


def train(cfg: Config, args: argparse.Namespace) -> None:
    """Trains with a config and the rest of the command line."""
    from mmrobust.utils.models import bare_model
    from mmrobust.utils.runner import build_runner
    from mmrobust.weights import (
        check_checkpoint,
        check_initial_weights,
        check_resumable,
        read_checkpoint,
    )

    check_sections_of_training(cfg, args)
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
    runner = build_runner(cfg, training=True)
    # A strategy builds the model later, and makes sure of that itself.
    built = not isinstance(runner.model, dict)
    if built and cfg.get('load_from') and cfg.get('resume'):
        check_checkpoint(cfg.load_from, bare_model(runner.model))
    with doing('training'), naming_bad_json(cfg):
        runner.train()


if __name__ == '__main__':
    cli.run(main)
