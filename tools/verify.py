"""Attacks a part of a report's images again: does the claim hold?"""

from __future__ import annotations

import sys
from pathlib import Path

from mmrobust import cli
from mmrobust.names import names
from mmrobust.utils.validation import number, positive_int, whole_number


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument('report', help='robustness.json, its .npz beside it')
    parser.add_argument('checkpoint', help='the weights that the report is about')
    parser.add_argument(
        '--num-images', type=int, default=16, help='images (default %(default)s)'
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='of the choice of images: take one that nobody knew (default 0)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=names()['tolerance'],
        help='mAP by which a figure may be lower than claimed (default %(default)s)',
    )
    parser.add_argument(
        '--work-dir',
        default='work_dirs/verification',
        help='folder for verification.json (default %(default)s); beside the report, '
        'the leaderboard shows it',
    )
    cli.add_cfg_options(parser)
    return parser


def main() -> None:
    """Verifies; ends with status 3 if the claim does not hold."""
    args = make_parser().parse_args()
    from mmrobust.api import load, verify  # bring torch

    claim = load(args.report)
    cli.check_work_dir(args.work_dir)
    found = verify(
        claim,
        args.checkpoint,
        positive_int(args.num_images, 'num_images'),
        seed=whole_number(args.seed, 'seed'),
        tolerance=number(args.tolerance, 'tolerance', 1),
        work_dir=args.work_dir,
        cfg_options=args.cfg_options,
    )
    for each in found.passes:
        words = 'overstated' if each.overstated(found.tolerance) else 'holds'
        print(
            f'{each.name}: claimed {each.claimed:.4f}, found {each.found:.4f}, {words}'
        )
    for note in found.notes:
        print(f'note: {note}')
    where = Path(args.work_dir) / 'verification.json'
    print(f'{len(found.image_ids)} images; written: {where}')
    if not found.holds:
        sys.exit(3)


if __name__ == '__main__':
    cli.run(main)
