"""The program ``mmrobust``: its subcommands, or any script with mmrobust's repairs.

mmdet's own ``tools/test.py`` imports mmcv's operators before it reads a config, so a
``custom_imports`` there comes too late for an mmcv without them. ``python -m mmrobust
SCRIPT`` runs it with what mmrobust offers in their place.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.util import find_spec

from mmrobust import commands, compat
from mmrobust.utils.validation import did_you_mean
from mmrobust.version import __version__

_NEEDED = ('torch', 'mmengine', 'mmcv', 'mmdet')


def main(argv: list[str] | None = None) -> int:
    """Runs the subcommand or the script that ``argv`` names.

    Args:
        argv: Its name and its arguments; by default those of this process.

    Returns:
        int: The exit code: 0, or 2 if there is nothing to run. A script that exits by
        itself, or raises, does so through this function.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(usage(), file=sys.stderr)
        return 2
    name = argv[0]
    if name in ('-h', '--help'):
        print(usage())
        return 0
    if name == '--version':
        print(f'mmrobust {__version__}')
        return 0
    if name in commands.OWN:
        return commands.run_own(name, argv[1:])
    if name in commands.SCRIPTS:
        return _command(name, argv[1:])
    if not os.path.isfile(name):
        near = did_you_mean(name, [*commands.SCRIPTS, *commands.OWN])
        print(
            f"error: there is no command or script '{name}'{near}; mmrobust --help "
            'lists the commands.',
            file=sys.stderr,
        )
        return 2
    _run(name, argv[1:])
    return 0


def usage() -> str:
    """Returns what ``--help`` prints."""
    lines = [f'  {name:16} {text}' for name, text in commands.summaries().items()]
    return '\n'.join(
        [
            'usage: mmrobust COMMAND [ARG ...]',
            '       mmrobust SCRIPT [ARG ...]',
            '',
            'commands (mmrobust COMMAND --help tells more):',
            *lines,
            '',
            "SCRIPT: a Python script, mmdet's tools/test.py say, run as `python SCRIPT "
            'ARG ...` would,',
            "with what mmrobust offers in the place of mmcv's missing compiled "
            'operators.',
        ]
    )


def _command(name: str, argv: list[str]) -> int:
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        print(
            f'error: mmrobust {name} needs {", ".join(missing)}, and nothing of that '
            'name is installed: mmrobust doctor says what to do.',
            file=sys.stderr,
        )
        return 2
    from mmrobust import cli

    cli.PROGRAM = f'mmrobust {name}'
    _run(str(commands.script_of(name)), argv)
    return 0


def _run(script: str, argv: list[str]) -> None:
    """Runs a script as Python would."""
    compat.install()
    sys.argv[:] = [script, *argv]
    # With `-m`, the first entry is the working directory, where `python SCRIPT` puts
    # the script's folder; in safe-path mode neither is there.
    if not getattr(sys.flags, 'safe_path', False):
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    sys.exit(main())
