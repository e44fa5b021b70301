"""Fine-tunes backbones of several eps on one task and compares them (2007.08489)."""

from __future__ import annotations

import sys
from pathlib import Path

from mmrobust import cli
from mmrobust.names import names
from mmrobust.utils.validation import number, whole_number


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        'config', help='classifier (mmpretrain) or detector (mmdet) of the target task'
    )
    parser.add_argument(
        '--checkpoints',
        nargs='+',
        required=True,
        metavar='EPS=FILE',
        help='backbones by the eps of their pre-training, for instance 0=a.pth 4=b.pth',
    )
    parser.add_argument(
        '--norm', default='linf', help='norm of that eps, for the report (default linf)'
    )
    modes = names()['transfer_modes']
    parser.add_argument(
        '--modes',
        nargs='+',
        choices=modes,
        default=modes,
        help='fixed: the backbone stays as it is; full: it learns, too (default both)',
    )
    parser.add_argument(
        '--lr',
        nargs='+',
        type=float,
        help="learning rates to choose from per eps and mode (default: the config's)",
    )
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[0],
        help='one training each (default 0)',
    )
    parser.add_argument(
        '--metric', metavar='KEY', help='figure to compare, like accuracy/top1'
    )
    parser.add_argument(
        '--work-dir', help='folder for runs and table; the same command resumes there'
    )
    cli.add_common_options(parser)
    return parser


def main() -> None:
    """Runs the sweep."""
    args = make_parser().parse_args()
    cfg = cli.load_config(args)
    # With torch and mmdet behind it, for which --help and mistakes need not wait.
    from mmdet.utils import setup_cache_size_limit_of_dynamo
    from mmrobust.studies.backbone_plan import Sweep, check_config, parse_checkpoints
    from mmrobust.studies.backbone_transfer import run_sweep
    from mmrobust.studies.study import each_once

    setup_cache_size_limit_of_dynamo()
    checkpoints = parse_checkpoints(args.checkpoints)
    check_config(cfg, args.config)
    lrs = [number(lr, '--lr') for lr in args.lr or [cfg.optim_wrapper.optimizer.lr]]
    seeds = [whole_number(seed, '--seeds') for seed in args.seeds]
    sweep = Sweep(
        cfg=cfg,
        checkpoints=checkpoints,
        modes=each_once('--modes', args.modes),
        lrs=each_once('--lr', lrs),
        seeds=each_once('--seeds', seeds),
        norm=args.norm,
        metric=args.metric,
        work_dir=Path(cfg.work_dir),
    )
    study = run_sweep(sweep, ['python', *sys.argv])
    print(study.table() if study.complete else '')
    print(f'Table, figures and plot: {sweep.work_dir / "transfer.md"}')


if __name__ == '__main__':
    cli.run(main)
