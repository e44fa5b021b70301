"""Tests a detector or a classifier, and measures its robustness with --attack."""

from __future__ import annotations

import argparse

from mmrobust import cli
from mmrobust.cli import Flag
from mmrobust.errors import ConfigError
from mmrobust.names import attack_names, is_corruption, listed, names
from mmrobust.utils.validation import did_you_mean

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
        'masks (segm), or by panoptic quality (panoptic); by default the first of them '
        "that the evaluator measures, and passes are compared by the evaluator's own "
        'figure',
        {'choices': ['auto', 'bbox', 'segm', 'panoptic']},
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
        f'the custom version: any of {listed("autoattack_members")}, possibly with '
        'settings, like apgd-t:n_iter=20,n_target_classes=3',
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
# What autoattack makes of options of the other attacks.
_OF_AUTOATTACK = {
    'norm': '; several of them for autoattack',
    'eps': '; one per norm of autoattack (default linf 4, l2 510, l1 19125)',
    'version': f'; of autoattack: {listed("autoattack_versions")} (default standard)',
}


def make_parser() -> cli.Parser:
    """Returns the parser: mmdet's own flags and those of the attacks."""
    parser = cli.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=cli.attack_list(
            autoattack='the four attacks of AutoAttack, on classifiers',
            corruptions=f'the 15 common corruptions of the pictures on disk; a part of '
            f'them, {", ".join(names()["corruption_sets"][1:])}; or one: '
            f'{listed("corruptions")}',
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
    attack = group.add_argument(
        '--attack',
        nargs='+',
        metavar='NAME',
        help='any of the attacks below; or autoattack, on classifiers',
    )
    cli.suggest(attack, [*attack_names(), 'autoattack', *names()['corruption_sets']])
    cli.add_attack_options(group, more=_OF_AUTOATTACK)
    group.add_argument(
        '--require',
        nargs='+',
        metavar="'NAME>=VALUE'",
        help='end with status 3 if a figure of the report is not as required, like '
        "'ensemble>=0.25', 'benign>=0.4' or 'pgd:coco/bbox_mAP_50>=0.5'",
    )
    corruption = group.add_argument(
        '--corruption',
        nargs='+',
        metavar='NAME',
        help='attack corrupted pictures: any that --attack knows',
    )
    cli.suggest(corruption, [*names()['corruption_sets'], *names()['corruptions']])
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
    return parser


def check_names(args: argparse.Namespace) -> None:
    """Refuses names that are unknown, and what belongs to corruptions without any.

    Raises:
        ConfigError: naming the first.
    """
    given, below = args.attack or [], args.corruption or []
    other = [*names()['corruption_sets'], *names()['corruptions']]
    for name in given:
        if name not in (*attack_names(), 'autoattack', *other):
            known = [*attack_names(), *other]
            raise ConfigError(
                f'attack {name!r} is unknown{did_you_mean(name, known)}: choose from '
                f'{listed("attacks")}, or of corruptions {", ".join(other)}.'
            )
    corruptions = [name for name in given if is_corruption(name)]
    if below and (corruptions or not given):
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
    if (below or corruptions) and 'autoattack' in given:
        raise ConfigError('autoattack cannot be combined with corruptions.')


def main() -> None:
    """Reads the command line and tests."""
    args = make_parser().parse_args()
    cfg = cli.load_config(args)
    check_names(args)
    # With torch and mmdet behind it, for which --help and mistakes need not wait.
    from mmdet.utils import setup_cache_size_limit_of_dynamo
    from mmrobust.commands.testing import test
    from mmrobust.distributed import start_processes

    setup_cache_size_limit_of_dynamo()
    start_processes(cfg)
    test(cfg, args, FLAGS)


if __name__ == '__main__':
    cli.run(main)
