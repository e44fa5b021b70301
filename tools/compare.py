"""Lays robustness reports beside each other, with the differences' intervals."""

from __future__ import annotations

from pathlib import Path

from mmrobust import cli
from mmrobust.errors import ConfigError


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        'reports',
        nargs='+',
        metavar='[NAME=]REPORT',
        help='robustness.json of an evaluation, or its folder; the first one is what '
        'the others are compared with',
    )
    parser.add_argument(
        '--out',
        default='work_dirs/comparison',
        help='folder for comparison.md, .html, .csv and .tex (default %(default)s)',
    )
    return parser


def main() -> None:
    """Compares, prints the tables and writes all forms."""
    args = make_parser().parse_args()
    from mmrobust.api import Comparison, load  # bring torch

    reports = {}
    for text in args.reports:
        name, equals, path = text.partition('=')
        path = path if equals else text
        name = name if equals else _name_of(Path(path))
        if name in reports:
            raise ConfigError(
                f'two reports are called {name!r}: write NAME=REPORT for each.'
            )
        reports[name] = load(path)
    comparison = Comparison(reports)
    cli.check_work_dir(args.out, 'folder of --out', '--out')
    paths = comparison.write(Path(args.out))
    print(paths[0].read_text())
    print('written:', ', '.join(map(str, paths)))


def _name_of(path: Path) -> str:
    """The folder that a report lies in, or its own name if it has one."""
    named = path.suffix and path.stem != 'robustness'
    folder = path.parent if path.suffix else path
    return path.stem if named else folder.resolve().name


if __name__ == '__main__':
    cli.run(main)
