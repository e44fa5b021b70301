"""Writes the robust variant of a standard mmdet config."""

from __future__ import annotations

from mmengine.config import Config
from mmrobust import cli
from mmrobust.commands import conversion
from mmrobust.names import listed, names


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(
        description=__doc__, epilog='Sizes are in pixel units of 0-255: 4, or 4/255.'
    )
    parser.add_argument('config', help="config file, or a name like 'mmdet::fcos/...'")
    parser.add_argument('out', help='the Python file to write')
    methods = names()['methods']
    method = parser.add_argument(
        '--method', default='free', help=f'one of: {listed("methods")} (default free)'
    )
    cli.suggest(method, methods)
    conversion.add_options(parser)
    cli.add_cfg_options(parser)
    return parser


def main() -> None:
    """Reads the command line and writes the config."""
    args = make_parser().parse_args()
    conversion.check_target(args.out, args.config, 'OUT')
    changes = ''

    def convert(cfg: Config) -> Config:
        nonlocal changes
        robust, changes = conversion.convert(cfg, args.method, args)
        return robust

    conversion.write(cli.configure(args, convert), args.out, changes, 'OUT')


if __name__ == '__main__':
    cli.run(main)
