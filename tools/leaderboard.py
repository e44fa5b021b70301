"""Makes one static page of all robustness reports below a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
from mmrobust import cli
from mmrobust.api import leaderboard
from mmrobust.errors import ConfigError
from mmrobust.utils.files import write_atomically


def main() -> None:
    """Reads the command line and writes the page."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        'folder', help='with a folder for each detector, in which robustness.json lies'
    )
    parser.add_argument('--out', help='the page (default FOLDER/leaderboard.html)')
    parser.add_argument('--title', default='Leaderboard', help='of the page')
    args: argparse.Namespace = parser.parse_args()
    folder = Path(args.folder)
    if not folder.is_dir():
        raise ConfigError(f'{folder} is no folder: give one with reports.')
    out = Path(args.out or folder / 'leaderboard.html')
    cli.check_work_dir(str(out.parent), 'folder of --out', '--out')
    write_atomically(out, leaderboard(folder, args.title))
    print('written:', out)


if __name__ == '__main__':
    cli.run(main)
