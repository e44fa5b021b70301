"""Tests a detector or a classifier, and measures its robustness with --attack."""

from __future__ import annotations

import argparse
import os
import sys
from copy import deepcopy
from typing import Any, NamedTuple

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmrobust import cli
from mmrobust.attacks import (
    ATTACK_NAMES,
    CORRUPTION_SETS,
    OPTIONS,
    attack_preset,
    corrupted,
    takes,
)
from mmrobust.autoattack.members import SETTINGS, VERSIONS, Ensemble, read_balls
from mmrobust.autoattack.package import load_package
from mmrobust.corruptions import NAMES, SEVERITIES
from mmrobust.weights import check_checkpoint, read_checkpoint
from mmrobust.errors import ConfigError, doing
from mmrobust.utils.configs import innermost, naming_bad_json
from mmrobust.utils.models import bare_model
from mmrobust.utils.runner import build_runner
from mmrobust.distributed import start_processes
from mmrobust.registry import ATTACKS
from mmrobust.utils.validation import did_you_mean, to_pixels


class Flag(NamedTuple):
    """A flag that sets a setting of the test loop.

    Attributes:
        attacks: what AttackTestLoop calls the setting, None if it has none.
        autoattack: what AutoAttackTestLoop calls it.
        help: text for ``--help``.
        argument: further arguments of ``add_argument``.
    """

    attacks: str | None
    autoattack: str | None
    help: str
    argument: dict[str, Any] = {}


FLAGS = {
    'seed': Flag('seed', 'seed', 'seed of the attacks (default 0)', {'type': int}),
    'num_images': Flag(
        *('num_images', 'num_images'),
        'evaluate on a fixed choice of so many images',
        {'type': int},
    ),
    'save_adv': Flag(
        'save_adv', 'save_adv', 'save the attacked images', {'metavar': 'DIR'}
    ),
    'report': Flag(
        *('report', 'report'),
        'the report (default <work dir>/robustness.json)',
        {'metavar': 'FILE'},
    ),
    'space': Flag(
        *('space', None),
        "attack the network's input (default), or the picture before the pipeline "
        'resizes it',
        {'choices': ['input', 'original']},
    ),
    'quantize': Flag(
        *('quantize', None),
        'score every attacked image also as a picture of 8 bits, through the unchanged '
        'pipeline',
        {'action': 'store_true', 'default': None},
    ),
    'check_images': Flag(
        *('check_images', None),
        'images on which the evaluation itself is tried out before it starts (default '
        '4, 0 for none)',
        {'type': int},
    ),
    'judged_by': Flag(
        *('judged_by', None),
        'compare passes, and let ensembles choose, by the mAP of boxes (bbox) or of '
        'masks (segm); by default masks where the evaluator measures nothing else, and '
        "passes are compared by the evaluator's own figure",
        {'choices': ['auto', 'bbox', 'segm']},
    ),
    'attack_batch_size': Flag(
        *('attack_batch_size', None),
        "images of a detector that share the network's passes in an attack: faster, "
        'and the same up to rounding (default 1)',
        {'type': int, 'metavar': 'N'},
    ),
    'shift': Flag(
        *('shifts', None),
        'test other datasets of the same classes, too, without attack: annotations in '
        "the format of the config's test dataset, and the folder of the pictures",
        {'nargs': '+', 'metavar': 'NAME=ANN_FILE,PREFIX'},
    ),
    'members': Flag(
        *(None, 'attacks'),
        f'the custom version: any of {", ".join(SETTINGS)}, possibly with settings, '
        'like apgd-t:n_iter=20,n_target_classes=3',
        {'nargs': '+', 'metavar': 'NAME'},
    ),
    'resolutions': Flag(
        *(None, 'resolutions'),
        "sides of square images (default: the config's own images)",
        {'nargs': '+', 'type': int, 'metavar': 'SIDE'},
    ),
    'batch_size': Flag(
        *(None, 'shard_size'),
        "images attacked together (default: the test dataloader's batch size)",
        {'type': int},
    ),
    'image_ids': Flag(
        *(None, 'image_ids'),
        'evaluate on the images that this file lists, one path or name per line',
        {'metavar': 'FILE'},
    ),
}
# What a config's test loop keeps when --attack replaces its attacks, beside the
# settings of flags.
_KEPT = ('fp16', 'gt_frame', 'resume', 'gallery', 'speed')
# What autoattack makes of options of the other attacks.
_OF_AUTOATTACK = {
    'norm': '; several of them for autoattack',
    'eps': '; one per norm of autoattack (default linf 4, l2 510, l1 19125)',
    'version': f'; of autoattack: {", ".join(VERSIONS)} (default standard)',
}


def parse_args() -> argparse.Namespace:
    """Reads the command line: mmdet's own flags and those of the attacks."""
    parser = cli.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=cli.attack_list(
            autoattack='the four attacks of AutoAttack, on classifiers',
            corruptions=f'the 15 common corruptions of the pictures on disk; a part of '
            f'them, {", ".join(list(CORRUPTION_SETS)[1:])}; or one: {", ".join(NAMES)}',
        ),
    )
    parser.add_argument(
        'config', help='config file of an mmdet detector or an mmpretrain classifier'
    )
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--work-dir', help='folder for logs and the report')
    parser.add_argument('--out', help='dump predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument(
        '--show-dir',
        help='save painted images under <work dir>/<time>/<this folder>, those of the '
        'attacks in its subfolder attacks; of classifiers under <work dir>/<this '
        'folder>',
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds per image of --show (default 2)',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    cli.add_common_options(parser)
    group = parser.add_argument_group(
        'attacks', 'Sizes are in pixel units of 0-255: 4, or 4/255.'
    )
    group.add_argument(
        '--attack',
        nargs='+',
        metavar='NAME',
        help='any of the attacks below; or autoattack, on classifiers',
    )
    cli.add_attack_options(group, more=_OF_AUTOATTACK)
    group.add_argument(
        '--require',
        nargs='+',
        metavar="'NAME>=VALUE'",
        help='end with status 3 if a figure of the report is not as required, like '
        "'ensemble>=0.25', 'benign>=0.4' or 'pgd:coco/bbox_mAP_50>=0.5'",
    )
    group.add_argument(
        '--corruption',
        nargs='+',
        metavar='NAME',
        help='attack corrupted pictures: any that --attack knows',
    )
    group.add_argument(
        '--severity',
        nargs='+',
        type=int,
        metavar='N',
        help='of corruptions, 1 (weak) to 5 (default: all five)',
    )
    speed = parser.add_argument_group(
        'speed', 'Of attacks that follow a gradient; not of autoattack.'
    )
    cli.add_speed_options(speed)
    auto = parser.add_argument_group('autoattack', 'Only with --attack autoattack.')
    for name, flag in FLAGS.items():
        where = group if flag.attacks else auto
        option = '--' + name.replace('_', '-')
        where.add_argument(option, help=flag.help, **flag.argument)
    return parser.parse_args()


def main() -> None:
    """Reads the command line and tests."""
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    cfg = cli.load_config(args)
    start_processes(cfg)
    test(cfg, args)


def test(cfg: Config, args: argparse.Namespace) -> None:
    """Tests with a config and the rest of the command line."""
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(key) is None:
            raise ConfigError(f'config {args.config!r} has no {key} to test with.')
    _set_attacks(cfg, args)
    requirements = _requirements(cfg, args)
    read_checkpoint(args.checkpoint)  # before the model and the data are built
    cfg.load_from = args.checkpoint
    if args.out is not None and (
        not args.out.endswith(('.pkl', '.pickle')) or os.path.isdir(args.out)
    ):
        raise ConfigError(f'--out {args.out!r} must be a .pkl file.')
    for option in ('out', 'report', 'save_adv'):  # before hours of computing
        path = getattr(args, option)
        if path is not None:
            folder = path if option == 'save_adv' else os.path.dirname(path) or '.'
            flag = '--' + option.replace('_', '-')
            cli.check_work_dir(folder, f'folder of {flag}', flag)
    if args.show_dir and os.path.isabs(args.show_dir):  # not in the work dir
        cli.check_work_dir(args.show_dir, 'folder of --show-dir', '--show-dir')
    classifier = _is_classifier(cfg)
    if args.wait_time != 2 and not args.show:
        raise ConfigError('--wait-time needs --show.')
    if args.show or args.show_dir:
        _set_visualization(cfg, args, classifier)
    if args.tta:
        _set_tta(cfg, classifier)
    runner = build_runner(cfg)
    if not args.tta:
        check_checkpoint(args.checkpoint, bare_model(runner.model))
    if args.out is not None:
        dump = DumpResults if classifier else DumpDetResults
        runner.test_evaluator.metrics.append(dump(out_file_path=args.out))
    with doing('testing'), naming_bad_json(cfg):
        runner.test()
    if requirements and is_main_process():
        from mmrobust.api import check, load

        missed = check(load(runner.test_loop.report), requirements)
        for sentence in missed:
            print(f'not met: {sentence}', file=sys.stderr)
        if missed:
            sys.exit(3)


def _requirements(cfg: Config, args: argparse.Namespace) -> list[Any]:
    """Reads what is required, and whether there will be such figures."""
    if not args.require:
        return []
    # Late, as --help need not wait for it.
    from mmrobust.api import Requirement

    if not {'attacks', 'threats'} & set(cfg.test_cfg):
        raise ConfigError('--require needs --attack, or attacks in the config.')
    found = [Requirement.read(text) for text in args.require]
    for each in found if 'attacks' in cfg.test_cfg else ():
        each.check_name(list(cfg.test_cfg.attacks))
    return found


def _is_classifier(cfg: Config) -> bool:
    """Whether the model is mmpretrain's, by its own scope or the config's."""
    scope, dot, _ = str(cfg.model.get('type')).partition('.')
    return (scope if dot else cfg.get('default_scope')) in ('mmpretrain', 'mmcls')


def _set_attacks(cfg: Config, args: argparse.Namespace) -> None:
    """Puts the attacks of the command line in place of the config's test loop."""
    options, flags = cli.given(args, OPTIONS), cli.given(args, FLAGS)
    speed = cli.speed_of(args)
    names = args.attack or []
    is_auto = 'autoattack' in names
    _check_corruptions(args)
    for key in flags:
        if FLAGS[key].attacks is None and not is_auto:
            raise ConfigError(f'{_flag(key)} needs --attack autoattack.')
    if not names:
        is_auto = str(cfg.test_cfg.get('type')).endswith('AutoAttackTestLoop')
    has_attacks = bool(names) or is_auto or 'attacks' in cfg.test_cfg
    for key in (*options, *flags, *speed):
        if not (has_attacks if key not in options else names):
            raise ConfigError(f'{_flag(key)} needs --attack.')
        if is_auto and key not in options and not (key in flags and FLAGS[key][1]):
            raise ConfigError(f'{_flag(key)} is no setting of autoattack.')
    settings = {FLAGS[key][is_auto]: value for key, value in flags.items()}
    if speed:
        settings['speed'] = {**(cfg.test_cfg.get('speed') or {}), **speed}
    if not names:
        cfg.test_cfg.update(settings)
    else:
        if len(set(names)) < len(names):
            raise ConfigError(f'--attack {" ".join(names)} names one attack twice.')
        loop = (_autoattack_loop if is_auto else _attack_loop)(cfg, args, options)
        keys = {flag.attacks for flag in FLAGS.values()}.union(_KEPT)
        if is_auto:
            keys = {flag.attacks for flag in FLAGS.values() if flag.autoattack}
            keys.add('fp16')
        kept = {key: value for key, value in cfg.test_cfg.items() if key in keys}
        if args.image_ids is not None:
            kept.pop('num_images', None)
        cfg.test_cfg = ConfigDict({**kept, **settings, **loop})
    if has_attacks and args.tta:
        raise ConfigError(
            '--tta and attacks exclude each other: the attacks need the gradient of a '
            'single forward pass.'
        )
    if has_attacks and not is_auto:
        hook = ConfigDict(type='mmrobust.AttackVisualizationHook')
        if args.show_dir:
            hook.out_dir = args.show_dir
        cfg.setdefault('default_hooks', ConfigDict()).setdefault(
            'attack_visualization', hook
        )


def _flag(key: str) -> str:
    return '--' + key.replace('_', '-')


def _attack_loop(
    cfg: Config, args: argparse.Namespace, given: dict[str, Any]
) -> dict[str, Any]:
    """The loop of the ordinary attacks, each with one norm and all radii and steps."""
    corruptions = [name for name in args.attack if _is_corruption(name)]
    names = [name for name in args.attack if name not in corruptions]
    for key in given:
        if not any(takes(name, key) for name in names):
            raise ConfigError(
                f'{_flag(key)} is no setting of {" or ".join(args.attack)}.'
            )
    norms = given.pop('norm', ['linf'])
    if len(norms) > 1:
        raise ConfigError(f'--norm {" ".join(norms)}: only autoattack takes several.')
    attacks, curves = {}, {}
    for name in names:
        for label, values in _curve(name, given).items():
            attacks[label] = attack_preset(
                name, **{**given, 'norm': norms[0], **values}
            )
            if label != name:
                curves[label] = name
    if chosen := args.corruption or corruptions:
        severities = args.severity or SEVERITIES
        on_top = attacks if args.corruption else {}
        attacks = {} if args.corruption else attacks
        for label, below, config in corrupted(chosen, severities, on_top):
            attacks[label] = config
            if below in curves:
                curves[label] = label.replace(below, curves[below], 1)
        curves = {label: base for label, base in curves.items() if label in attacks}
    for attack in attacks.values():
        ATTACKS.build(attack)  # refuses impossible settings before any work
    return {'type': 'mmrobust.AttackTestLoop', 'attacks': attacks, 'curves': curves}


def _is_corruption(name: str) -> bool:
    return name in CORRUPTION_SETS or name in NAMES


def _check_corruptions(args: argparse.Namespace) -> None:
    """Refuses names that are unknown, and what belongs to corruptions without any."""
    names, below = args.attack or [], args.corruption or []
    for name in names:
        if not (name in ATTACK_NAMES or name == 'autoattack' or _is_corruption(name)):
            known = [*ATTACK_NAMES, *CORRUPTION_SETS, *NAMES]
            raise ConfigError(
                f'attack {name!r} is unknown{did_you_mean(name, known)}: choose from '
                f'{", ".join(ATTACK_NAMES)}, or of corruptions '
                f'{", ".join((*CORRUPTION_SETS, *NAMES))}.'
            )
    corruptions = [name for name in names if _is_corruption(name)]
    if below and (corruptions or not names):
        raise ConfigError(
            '--corruption needs attacks that start from the corrupted pictures: name '
            'some by --attack, and corruptions alone by --attack only.'
        )
    if args.severity is not None and not corruptions and not below:
        raise ConfigError('--severity needs corruptions, as in --attack corruptions.')
    if len(set(args.severity or ())) < len(args.severity or ()):
        raise ConfigError(
            f'--severity {" ".join(map(str, args.severity))} names one value twice.'
        )
    if (below or corruptions) and 'autoattack' in names:
        raise ConfigError('autoattack cannot be combined with corruptions.')


def _curve(name: str, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The points of an attack's curve, like ``pgd-eps2-steps10``, or just ``pgd``."""
    points: dict[str, dict[str, Any]] = {name: {}}
    for key, text in (('eps', 'eps'), ('num_steps', 'steps')):
        values = given.get(key)
        if values is None:
            continue
        sizes = [to_pixels(v) if key == 'eps' else v for v in values]
        if len(set(sizes)) < len(values):
            raise ConfigError(
                f'{_flag(key)} {" ".join(map(str, values))} names one value twice.'
            )
        if not takes(name, key):
            values = [None]
        points = {
            label if len(values) == 1 else f'{label}-{text}{value}'.replace('/', '_'): {
                **point,
                key: value,
            }
            for label, point in points.items()
            for value in values
        }
    return points


def _autoattack_loop(
    cfg: Config, args: argparse.Namespace, given: dict[str, Any]
) -> dict[str, Any]:
    """The loop of AutoAttack, checked as far as that needs no model."""
    if len(args.attack) > 1:
        raise ConfigError(
            'autoattack cannot be combined with other attacks: run them on their own.'
        )
    for key in given:
        if key not in _OF_AUTOATTACK:
            raise ConfigError(
                f'{_flag(key)} is no setting of autoattack: choose the steps of its '
                'members, as in --members apgd-ce:n_iter=20,n_restarts=2.'
            )
    if not _is_classifier(cfg):
        raise ConfigError(
            f'autoattack works on classifiers only (of mmpretrain), and the model '
            f'{cfg.model.get("type")} is none: choose from {", ".join(ATTACK_NAMES)}.'
        )
    norms = args.norm or ['linf']
    radii = args.eps or [None] * len(norms)
    if len(radii) != len(norms):
        raise ConfigError(
            f'--eps gives {len(radii)} radii for {len(norms)} norms '
            f'({" ".join(norms)}): give one per norm, in the order of --norm.'
        )
    threats: list[dict[str, Any]] = [
        {'norm': norm} if eps is None else {'norm': norm, 'eps': eps}
        for norm, eps in zip(norms, radii, strict=True)
    ]
    read_balls(threats)
    Ensemble.read(args.version, args.members)
    load_package()
    version = {} if args.version is None else {'version': args.version}
    return {'type': 'mmrobust.AutoAttackTestLoop', 'threats': threats, **version}


def _set_visualization(cfg: Config, args: argparse.Namespace, classifier: bool) -> None:
    """Turns the pictures on, as the model's own test tool does."""
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    if not classifier:
        hooks.setdefault('visualization', ConfigDict(type='DetVisualizationHook'))
        trigger_visualization_hook(cfg, args)
        return
    hook = hooks.setdefault('visualization', ConfigDict(type='VisualizationHook'))
    if cfg.get('visualizer') is None:  # mmengine's own cannot draw a class
        cfg.visualizer = ConfigDict(
            type='mmpretrain.UniversalVisualizer',
            vis_backends=[dict(type='LocalVisBackend')],
        )
    hook.update(
        enable=True,
        show=args.show,
        wait_time=args.wait_time,
        out_dir=args.show_dir and os.path.join(cfg.work_dir, args.show_dir),
        interval=1,
    )


def _set_tta(cfg: Config, classifier: bool) -> None:
    """Wraps the model for test-time augmentation, with the frameworks' defaults."""
    if 'tta_model' not in cfg:
        cfg.tta_model = ConfigDict(type='mmpretrain.AverageClsScoreTTA')
        if not classifier:
            nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
            cfg.tta_model = ConfigDict(type='DetTTAModel', tta_cfg=nms)
    if 'tta_pipeline' not in cfg:
        dataset: Any = innermost(cfg.test_dataloader.dataset)[0]
        flips = [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)]
        meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        pack = dataset.pipeline[-1]
        if not classifier:
            keys = (*meta_keys, 'flip', 'flip_direction')
            pack = dict(type='PackDetInputs', meta_keys=keys)
        cfg.tta_pipeline = deepcopy(dataset.pipeline)
        cfg.tta_pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [pack]])
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


if __name__ == '__main__':
    cli.run(main)
