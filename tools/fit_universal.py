"""Fits a universal perturbation on the training images of one or several detectors."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mmrobust import cli
from mmrobust.errors import ConfigError
from mmrobust.names import names
from mmrobust.utils.validation import number, positive_int, to_pixels

if TYPE_CHECKING:
    from mmrobust.fitting import Variable

# The attacks that use what is fitted.
PERTURBATION, PATCH = 'universal', 'universal-patch'
_OF_PATCHES = ('patch_size', 'patch_place', 'patch_transform')
# Pixels of a patch that is fitted; it is resized to every place.
_SIDE = 64


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument('config', help='config of a detector, with a train_dataloader')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--with',
        dest='others',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='fit for this detector, too; may be given several times',
    )
    parser.add_argument(
        '--attack',
        choices=[PERTURBATION, PATCH],
        default=PERTURBATION,
        help='what is fitted: a perturbation (default) or a patch',
    )
    parser.add_argument(
        '--eps', help='of universal: radius in linf, pixel units of 0-255 (default 8)'
    )
    for name in _OF_PATCHES:
        option = names()['options'][name]
        parser.add_argument(
            '--' + name.replace('_', '-'),
            metavar=option['metavar'],
            help=option['help'],
        )
    parser.add_argument(
        '--smooth',
        type=float,
        help='of universal-patch: length of the gradient of the total variation beside '
        'that of the objective (default 0)',
    )
    parser.add_argument(
        '--objective',
        default='total',
        metavar='NAME',
        help='what is raised: total (default), or an objective of docs/attacks.md',
    )
    parser.add_argument(
        '--passes', type=int, default=5, help='over the training images (default 5)'
    )
    parser.add_argument(
        '--batch-size', type=int, default=8, help='images of a step (default 8)'
    )
    parser.add_argument(
        '--num-images', type=int, help='fit on a fixed choice of so many images'
    )
    parser.add_argument(
        '--size',
        type=int,
        help="side of the square that is fitted (default: the picture's longer side; "
        f'{_SIDE} for a patch)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of all draws (default 0)'
    )
    parser.add_argument(
        '--work-dir',
        default='work_dirs/universal',
        help='folder of the result; the same command goes on there',
    )
    cli.add_cfg_options(parser)
    return parser


def main() -> None:
    """Fits."""
    args = make_parser().parse_args()
    # With torch and mmdet behind it, for which --help need not wait.
    from mmdet.utils import setup_cache_size_limit_of_dynamo
    from mmrobust.fitting import Plan, fit_universal
    from mmrobust.objective import Objective
    from mmrobust.studies.attack_matrix import Detector
    from mmrobust.weights import read_checkpoint

    setup_cache_size_limit_of_dynamo()
    make = _perturbation(args) if args.attack == PERTURBATION else _texture(args)
    Objective(args.objective)  # refuses unknown ones
    for option in ('passes', 'batch_size', 'num_images', 'size'):
        if getattr(args, option) is not None:
            positive_int(getattr(args, option), '--' + option.replace('_', '-'))
    detectors: list[Detector] = []
    for config, checkpoint in [(args.config, args.checkpoint), *args.others]:
        args.config = config
        name = f'detector{len(detectors)}'
        detectors.append(Detector(name, config, checkpoint, cli.configure(args)))
        read_checkpoint(checkpoint)
    cli.check_work_dir(args.work_dir)
    plan = Plan(
        detectors=detectors,
        make=make,
        objective=args.objective,
        work_dir=Path(args.work_dir),
        passes=args.passes,
        batch_size=args.batch_size,
        num_images=args.num_images,
        size=args.size,
        seed=args.seed,
    )
    print(f'It is in {fit_universal(plan)}, and what is known of it beside it.')


def _perturbation(args: argparse.Namespace) -> Callable[[tuple[int, int]], Variable]:
    from mmrobust.fitting import Perturbation
    from mmrobust.universal import LARGEST

    for name in (*_OF_PATCHES, 'smooth'):
        if getattr(args, name) is not None:
            raise ConfigError(f'--{name.replace("_", "-")} needs --attack {PATCH}.')
    eps = to_pixels(args.eps or 8)
    if not 1 <= eps <= LARGEST:
        raise ConfigError(
            f'--eps {args.eps} must be from 1 to {LARGEST}: a file of 8 bits holds no '
            'other perturbations.'
        )
    return lambda size: Perturbation(size, eps)


def _texture(args: argparse.Namespace) -> Callable[[tuple[int, int]], Variable]:
    from mmrobust.attacks import Patch
    from mmrobust.fitting import Texture

    if args.eps is not None:
        raise ConfigError(f'--eps is no setting of {PATCH}, whose values are any.')
    smooth = number(args.smooth or 0, '--smooth', 1e6)
    args.size = args.size or _SIDE
    given = {Patch.options[name].parameter: getattr(args, name) for name in _OF_PATCHES}
    chosen = {key: value for key, value in given.items() if value is not None}
    patch = Patch(search='grey', **chosen)
    return lambda size: Texture(size, patch, smooth)


if __name__ == '__main__':
    cli.run(main)
