"""Makes one static page of all robustness reports below a folder."""

from __future__ import annotations

from pathlib import Path

from mmrobust import cli
from mmrobust.errors import ConfigError
from mmrobust.utils.files import write_atomically


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        'folder', help='with a folder for each detector, in which robustness.json lies'
    )
    parser.add_argument('--out', help='the page (default FOLDER/leaderboard.html)')
    parser.add_argument('--title', default='Leaderboard', help='of the page')
    return parser


def main() -> None:
    """Reads the command line and writes the page."""
    args = make_parser().parse_args()
    folder = Path(args.folder)
    if not folder.is_dir():
        raise ConfigError(f'{folder} is no folder: give one with reports.')
    out = Path(args.out or folder / 'leaderboard.html')
    cli.check_work_dir(str(out.parent), 'folder of --out', '--out')
    from mmrobust.api import leaderboard  # brings torch

    write_atomically(out, leaderboard(folder, args.title))
    print('written:', out)


if __name__ == '__main__':
    cli.run(main)
