"""What ``tools/test.py`` does with its command line: the config's loop, then a test."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults

from .. import cli
from ..api import Requirement, check, load
from ..attacks import ATTACK_NAMES, OPTIONS, attack_preset, corrupted, takes
from ..autoattack import Ensemble, load_package, read_balls
from ..corruptions import SEVERITIES
from ..errors import ConfigError, doing
from ..names import is_corruption
from ..registry import ATTACKS
from ..utils.configs import innermost, naming_bad_json
from ..utils.models import bare_model
from ..utils.runner import build_runner
from ..utils.validation import to_pixels
from ..weights import check_checkpoint, read_checkpoint

# What a config's test loop keeps when --attack replaces its attacks, beside the
# settings of flags.
_KEPT = ('fp16', 'gt_frame', 'resume', 'gallery', 'speed')
# The options of attacks that autoattack has, too.
_OF_AUTOATTACK = ('norm', 'eps', 'version')


def test(cfg: Config, args: argparse.Namespace, flags: Mapping[str, cli.Flag]) -> None:
    """Tests with a config and the rest of the command line.

    Args:
        cfg: the config, whose test loop is changed.
        args: the command line.
        flags: what of it sets settings of the test loop, by attribute of ``args``.

    Raises:
        ConfigError: if the two do not go together.
    """
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(key) is None:
            raise ConfigError(f'config {args.config!r} has no {key} to test with.')
    _set_attacks(cfg, args, flags)
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
        missed = check(load(runner.test_loop.report), requirements)
        for sentence in missed:
            print(f'not met: {sentence}', file=sys.stderr)
        if missed:
            sys.exit(3)


def _requirements(cfg: Config, args: argparse.Namespace) -> list[Any]:
    """Reads what is required, and whether there will be such figures."""
    if not args.require:
        return []
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


def _set_attacks(
    cfg: Config, args: argparse.Namespace, flags: Mapping[str, cli.Flag]
) -> None:
    """Puts the attacks of the command line in place of the config's test loop."""
    options, given = cli.given(args, OPTIONS), cli.given(args, flags)
    speed = cli.speed_of(args)
    names = args.attack or []
    is_auto = 'autoattack' in names
    for key in given:
        if flags[key].attacks is None and not is_auto:
            raise ConfigError(f'{_flag(key)} needs --attack autoattack.')
    if not names:
        is_auto = str(cfg.test_cfg.get('type')).endswith('AutoAttackTestLoop')
    has_attacks = bool(names) or is_auto or 'attacks' in cfg.test_cfg
    for key in (*options, *given, *speed):
        if not (has_attacks if key not in options else names):
            raise ConfigError(f'{_flag(key)} needs --attack.')
        if is_auto and key not in options and not (key in given and flags[key][1]):
            raise ConfigError(f'{_flag(key)} is no setting of autoattack.')
    settings = {flags[key][is_auto]: value for key, value in given.items()}
    if speed:
        settings['speed'] = {**(cfg.test_cfg.get('speed') or {}), **speed}
    if not names:
        cfg.test_cfg.update(settings)
    else:
        if len(set(names)) < len(names):
            raise ConfigError(f'--attack {" ".join(names)} names one attack twice.')
        loop = (_autoattack_loop if is_auto else _attack_loop)(cfg, args, options)
        keys = {flag.attacks for flag in flags.values()}.union(_KEPT)
        if is_auto:
            keys = {flag.attacks for flag in flags.values() if flag.autoattack}
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
    corruptions = [name for name in args.attack if is_corruption(name)]
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
            vis_backends=[{'type': 'LocalVisBackend'}],
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
            nms = {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}
            cfg.tta_model = ConfigDict(type='DetTTAModel', tta_cfg=nms)
    if 'tta_pipeline' not in cfg:
        dataset: Any = innermost(cfg.test_dataloader.dataset)[0]
        flips = [{'type': 'RandomFlip', 'prob': p} for p in (1.0, 0.0)]
        meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        pack = dataset.pipeline[-1]
        if not classifier:
            keys = (*meta_keys, 'flip', 'flip_direction')
            pack = {'type': 'PackDetInputs', 'meta_keys': keys}
        cfg.tta_pipeline = deepcopy(dataset.pipeline)
        cfg.tta_pipeline[-1] = {'type': 'TestTimeAug', 'transforms': [flips, [pack]]}
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
