"""Attacks N detectors, and shows the attacked images to M detectors."""

from __future__ import annotations

import sys
from pathlib import Path

from mmrobust import cli
from mmrobust.errors import ConfigError
from mmrobust.names import attack_names, listed
from mmrobust.utils.validation import positive_int


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        'detectors',
        nargs='+',
        metavar='NAME=CONFIG:CHECKPOINT',
        help='detectors that are tested on the same images, each with its own config',
    )
    parser.add_argument(
        '--sources', nargs='+', metavar='NAME', help='attack only these (default all)'
    )
    parser.add_argument(
        '--targets', nargs='+', metavar='NAME', help='test only these (default all)'
    )
    parser.add_argument(
        '--work-dir',
        default='work_dirs/transfer_matrix',
        help='folder for images and matrix; the same command resumes there',
    )
    parser.add_argument(
        '--metric', metavar='KEY', help='figure to compare, like coco/bbox_mAP_50'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=cli.DictAction,
        help='override settings of all configs, as key=value',
    )
    group = parser.add_argument_group(
        'attack', 'Sizes are in pixel units of 0-255: 4, or 4/255.'
    )
    attack = group.add_argument(
        '--attack',
        default='mim',
        metavar='NAME',
        help=f'one of: {listed("attacks")} (default mim)',
    )
    cli.suggest(attack, attack_names())
    cli.add_attack_options(group, curves=False)
    group.add_argument(
        '--seed', type=int, default=0, help='seed of the attack (default 0)'
    )
    group.add_argument(
        '--num-images', type=int, help='evaluate on a fixed choice of so many images'
    )
    return parser


def main() -> None:
    """Runs the matrix."""
    args = make_parser().parse_args()
    # With torch and mmdet behind it, for which --help need not wait.
    from mmdet.utils import setup_cache_size_limit_of_dynamo
    from mmrobust.attacks import OPTIONS, attack_preset, takes
    from mmrobust.registry import ATTACKS
    from mmrobust.studies.attack_matrix import Detector, Plan, choose, parse_detectors
    from mmrobust.studies.attack_transfer import run_matrix
    from mmrobust.weights import read_checkpoint

    setup_cache_size_limit_of_dynamo()
    given = cli.given(args, OPTIONS)
    for key in given:
        if not takes(args.attack, key):
            option = key.replace('_', '-')
            raise ConfigError(f'--{option} is no setting of {args.attack}.')
    preset = attack_preset(args.attack, **given)
    ATTACKS.build(preset)  # refuses impossible settings before any work
    if args.num_images is not None:
        positive_int(args.num_images, '--num-images')
    pairs = parse_detectors(args.detectors)
    sources = choose('--sources', args.sources, list(pairs))
    targets = choose('--targets', args.targets, list(pairs))
    detectors = {}
    for name, (config, checkpoint) in pairs.items():
        args.config = config
        detectors[name] = Detector(name, config, checkpoint, cli.configure(args))
        read_checkpoint(checkpoint)  # before anything is attacked
    cli.check_work_dir(args.work_dir)
    plan = Plan(
        sources=[detectors[name] for name in sources],
        targets=[detectors[name] for name in targets],
        attack=args.attack,
        preset=preset,
        work_dir=Path(args.work_dir),
        seed=args.seed,
        num_images=args.num_images,
        metric=args.metric,
        command=['python', *sys.argv],
    )
    matrix = run_matrix(plan)
    print(matrix.table())
    for text in matrix.checks():
        print(f'Check: {text}')
    print(f'Table, figures and picture: {plan.work_dir / "transfer_matrix.md"}')


if __name__ == '__main__':
    cli.run(main)
