"""Run any script with mmrobust's repairs in place: ``python -m mmrobust SCRIPT``.

mmdet's own ``tools/test.py`` imports mmcv's operators before it reads a config, so a
``custom_imports`` there comes too late for an mmcv without them.
"""

from __future__ import annotations

import os
import runpy
import sys

from mmrobust import compat

USAGE = """usage: python -m mmrobust SCRIPT [ARG ...]

Run a Python script, mmdet's tools/test.py say, as `python SCRIPT ARG ...` would,
with what mmrobust offers in the place of mmcv's missing compiled operators."""


def main(argv: list[str] | None = None) -> int:
    """Run the script that ``argv`` names.

    Args:
        argv: The script and its arguments; by default those of this process.

    Returns:
        int: The exit code: 0, or 2 if there is no script to run. A script that
        exits by itself, or raises, does so through this function.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(USAGE, file=sys.stderr)
        return 2
    if argv[0] in ('-h', '--help'):
        print(USAGE)
        return 0
    script = argv[0]
    if not os.path.isfile(script):
        print(f"mmrobust: there is no script '{script}'.", file=sys.stderr)
        return 2
    compat.install()
    sys.argv[:] = argv
    # With `-m`, the first entry is the working directory, where `python SCRIPT` puts
    # the script's folder; in safe-path mode neither is there.
    if not getattr(sys.flags, 'safe_path', False):
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    runpy.run_path(script, run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main())
