"""The subcommands of ``mmrobust``: the scripts of tools/, and what they are made of."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

# Where a subcommand has not the name of its script.
_OTHERWISE = {'convert': 'convert_backbone'}

#: Those that a script in tools/ carries out, in the order of ``--help``.
SCRIPTS = (
    *('train', 'test', 'robustify', 'compare', 'convert', 'transfer'),
    *('transfer-matrix', 'leaderboard', 'verify', 'fit-universal', 'demo'),
)
#: Those of this package's own modules, and what each does.
OWN = {
    'doctor': 'Says what is installed, what is missing, and what to do about it.',
    'completion': 'Prints what lets a shell complete commands and their options.',
}


def run_own(command: str, argv: list[str]) -> int:
    """Runs a subcommand of :data:`OWN`; returns the exit status."""
    status: int = import_module(f'.{command}', __name__).main(argv)
    return status


def script_of(command: str) -> Path:
    """Returns the script of a subcommand, in an installed package or a checkout."""
    name = _OTHERWISE.get(command, command.replace('-', '_')) + '.py'
    package = Path(__file__).resolve().parents[1]
    installed = package / '.mim' / 'tools' / name
    return installed if installed.is_file() else package.parent / 'tools' / name


def summaries() -> dict[str, str]:
    """Returns all subcommands with one line each; those of scripts are their own."""
    found = {}
    for command in SCRIPTS:
        text = script_of(command).read_text(encoding='utf-8')
        found[command] = str(ast.get_docstring(ast.parse(text))).splitlines()[0]
    return {**found, **OWN}
