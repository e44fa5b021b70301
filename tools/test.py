"""Tests a detector, and measures its robustness with --attack."""

from __future__ import annotations

import argparse
import os
from copy import deepcopy

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmrobust import cli
from mmrobust.attacks import ATTACK_NAMES, attack_preset
from mmrobust.checkpoints import check_checkpoint, read_checkpoint
from mmrobust.errors import ConfigError
from mmrobust.registry import ATTACKS

_ATTACK_ONLY = ('eps', 'step_size', 'num_steps', 'norm', 'restarts')
_EVALUATION = ('seed', 'num_images', 'save_adv', 'report')
# What a config's test loop keeps when --attack replaces its attacks.
_LOOP = ('fp16', 'gt_frame', *_EVALUATION)


def parse_args() -> argparse.Namespace:
    """Reads the command line: mmdet's own flags and those of the attacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of any mmdet detector')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--work-dir', help='folder for logs and the report')
    parser.add_argument('--out', help='dump predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument(
        '--show-dir',
        help='save painted images under <work dir>/<time>/<this folder>, those of the '
        'attacks in its subfolder attacks',
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per image')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    cli.add_common_options(parser)
    group = parser.add_argument_group(
        'attacks', 'Sizes are in pixel units of 0-255: 4, or 4/255.'
    )
    group.add_argument(
        '--attack', nargs='+', metavar='NAME', help=f'any of: {", ".join(ATTACK_NAMES)}'
    )
    group.add_argument('--eps', help='radius of the perturbation (default 4)')
    group.add_argument('--step-size', help='default: 2.5 * eps / steps, at most eps')
    group.add_argument('--num-steps', type=int, help='default: 20 for pgd, else 10')
    group.add_argument('--norm', help='linf (default) or l2')
    group.add_argument('--restarts', type=int, help='runs per image (default 1)')
    group.add_argument('--seed', type=int, help='seed of the attacks (default 0)')
    group.add_argument(
        '--num-images', type=int, help='evaluate on a fixed choice of so many images'
    )
    group.add_argument('--save-adv', metavar='DIR', help='save the attacked images')
    group.add_argument(
        '--report',
        metavar='FILE',
        help='the report (default <work dir>/robustness.json)',
    )
    return parser.parse_args()


def main() -> None:
    """Builds the runner and tests."""
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    cfg = cli.load_config(args)
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(key) is None:
            raise ConfigError(f'config {args.config!r} has no {key} to test with.')
    _set_attacks(cfg, args)
    read_checkpoint(args.checkpoint)  # before the model and the data are built
    cfg.load_from = args.checkpoint
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {args.out!r} must be a .pkl file.')
    for option in ('out', 'report', 'save_adv'):  # before hours of computing
        path = getattr(args, option)
        if path is not None:
            folder = path if option == 'save_adv' else os.path.dirname(path) or '.'
            flag = '--' + option.replace('_', '-')
            cli.check_work_dir(folder, f'folder of {flag}', flag)
    if args.show or args.show_dir:
        hooks = cfg.setdefault('default_hooks', ConfigDict())
        hooks.setdefault('visualization', ConfigDict(type='DetVisualizationHook'))
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        _set_tta(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if not args.tta:
        model = getattr(runner.model, 'module', runner.model)
        check_checkpoint(args.checkpoint, model)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


def _set_attacks(cfg: Config, args: argparse.Namespace) -> None:
    """Puts the attacks of the command line in place of the config's test loop."""
    given = {key: getattr(args, key) for key in _ATTACK_ONLY}
    given = {key: value for key, value in given.items() if value is not None}
    evaluation = {key: getattr(args, key) for key in _EVALUATION}
    evaluation = {key: value for key, value in evaluation.items() if value is not None}
    has_attacks = 'attacks' in cfg.test_cfg
    if not args.attack:
        if given:
            raise ConfigError(
                f'--{next(iter(given)).replace("_", "-")} needs --attack.'
            )
        if evaluation and not has_attacks:
            option = next(iter(evaluation)).replace('_', '-')
            raise ConfigError(f'--{option} needs --attack.')
        cfg.test_cfg.update(evaluation)
    else:
        if len(set(args.attack)) < len(args.attack):
            raise ConfigError(
                f'--attack {" ".join(args.attack)} names one attack twice.'
            )
        attacks = {name: attack_preset(name, **given) for name in args.attack}
        for attack in attacks.values():
            ATTACKS.build(attack)  # refuses impossible settings before any work
        loop = {key: value for key, value in cfg.test_cfg.items() if key in _LOOP}
        cfg.test_cfg = ConfigDict(
            type='mmrobust.AttackTestLoop', attacks=attacks, **{**loop, **evaluation}
        )
        has_attacks = True
    if has_attacks and args.tta:
        raise ConfigError(
            '--tta and attacks exclude each other: the attacks need the gradient of a '
            'single forward pass.'
        )
    if has_attacks:
        hook = ConfigDict(type='mmrobust.AttackVisualizationHook')
        if args.show_dir:
            hook.out_dir = args.show_dir
        cfg.setdefault('default_hooks', ConfigDict()).setdefault(
            'attack_visualization', hook
        )


def _set_tta(cfg: Config) -> None:
    """Wraps the model for test-time augmentation, with mmdet's defaults."""
    if 'tta_model' not in cfg:
        cfg.tta_model = ConfigDict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        )
    if 'tta_pipeline' not in cfg:
        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        flips = [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)]
        meta_keys = (
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
            'flip',
            'flip_direction',
        )
        pack = dict(type='PackDetInputs', meta_keys=meta_keys)
        cfg.tta_pipeline = deepcopy(dataset.pipeline)
        cfg.tta_pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [pack]])
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


if __name__ == '__main__':
    cli.run(main)
