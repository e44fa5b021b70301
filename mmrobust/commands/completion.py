"""Prints what lets a shell complete commands and their options, by the package shtab.

The script that a shell reads holds all names, so that no key press waits for Python.
"""

from __future__ import annotations

import argparse
import re
import runpy
import sys

from . import OWN, SCRIPTS, script_of, summaries

# What arguments are called, or options say, whose values are files.
_FILES = re.compile(
    r'\b(config|checkpoint|reports?|folder|source|out|detectors|file)\b'
)

SHELLS = ('bash', 'zsh', 'fish')


def whole_parser() -> argparse.ArgumentParser:
    """Returns a parser of all subcommands with all their options, not to parse with."""
    whole = argparse.ArgumentParser('mmrobust')
    commands = whole.add_subparsers()
    texts = summaries()
    for name in SCRIPTS:
        tool = runpy.run_path(str(script_of(name)), run_name=name)['make_parser']()
        _complete(tool)
        commands.add_parser(name, help=texts[name], parents=[tool], add_help=False)
    for name in OWN:
        own = commands.add_parser(name, help=texts[name])
        if name == 'completion':
            own.add_argument('shell', choices=SHELLS)
        else:
            own.add_argument('--json', action='store_true')
    return whole


def _complete(parser: argparse.ArgumentParser) -> None:
    """Says of each argument what may stand there: given names, or a file."""
    import shtab

    for action in parser._actions:
        if suggested := getattr(action, 'suggested', None):
            action.choices = suggested
        elif action.choices is None and action.nargs != 0:
            words = action.dest if not action.option_strings else str(action.help)
            if _FILES.search(words):
                action.complete = shtab.FILE  # type: ignore[attr-defined]


def main(argv: list[str] | None = None) -> int:
    """Prints the script of a shell.

    Args:
        argv: the arguments.

    Returns:
        The exit status, 2 without shtab.
    """
    parser = argparse.ArgumentParser(
        prog='mmrobust completion', description=OWN['completion']
    )
    parser.add_argument('shell', choices=SHELLS)
    shell = parser.parse_args(argv).shell
    try:
        import shtab
    except ImportError:
        print(
            'error: this needs the package shtab: pip install shtab.', file=sys.stderr
        )
        return 2
    print(shtab.complete(whole_parser(), shell=shell))
    return 0
