"""Sets up everything in a virtual environment, then runs a job in it.

    python tools/bootstrap.py demo     train two detectors, attack both, compare
    python tools/bootstrap.py test     run the tests
    python tools/bootstrap.py lint     ruff, layers of imports, mypy
    python tools/bootstrap.py docs     build the site of docs/ into site/
    python tools/bootstrap.py package  build wheel and sdist into dist/, and check them
    python tools/bootstrap.py audit    look for known vulnerabilities of the packages
    python tools/bootstrap.py setup    only set up

Needs Python 3.10 or newer and a network for the first time, and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
GIGABYTES = 10  # that an installation needs, with CUDA's packages
OLDEST, NEWEST = (3, 10), (3, 12)
# stack: default environment, and what is installed from this checkout
STACKS = {
    'openmmlab': ('.venv', 'openmmlab,demo,test,dev,docs'),
    'onedl': ('.venv-onedl', 'onedl,demo,test,dev,docs'),
}
# lint-imports, which has no module that Python could run
IMPORTS = 'from importlinter.cli import lint_imports_command as run; run()'
# A file's tests stay in one process, which shares what they set up.
PROCESSES = ['-n', str(min(8, os.cpu_count() or 1)), '--dist', 'worksteal']
JOBS: dict[str, list[list[str]]] = {
    'demo': [['tools/demo.py']],
    'docs': [['tools/build_docs.py']],
    'test': [['-m', 'pytest', *PROCESSES]],
    'lint': [
        ['-m', 'ruff', 'check', '.'],
        ['-m', 'ruff', 'format', '--check', '.'],
        ['-c', IMPORTS, '--no-cache'],
        ['-m', 'mypy', 'mmrobust', 'benchmarks', 'tools'],
    ],
    # With the environment's own setuptools, which the constraints name.
    'package': [
        ['-m', 'build', '--no-isolation'],
        ['-m', 'twine', 'check', '--strict', 'dist/*'],
    ],
    # Strict: a package that the service does not know must not count as a good one.
    'audit': [
        ['-m', 'pip_audit', '-r', f'constraints/{stack}.txt', '--strict']
        + ['--no-deps', '--disable-pip', '--progress-spinner', 'off']
        for stack in STACKS
    ],
    'setup': [],
}


class Parser(argparse.ArgumentParser):
    """argparse's parser, with mistakes in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        fail(f'{message}; --help lists all options.')


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Reads the command line; what is unknown here, or after --, is the job's."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a shortened option could be one of the job's
    )
    parser.add_argument('job', choices=sorted(JOBS))
    parser.add_argument('--stack', choices=sorted(STACKS), default='openmmlab')
    parser.add_argument('--venv', help='folder of the virtual environment')
    parser.add_argument(
        '--torch-index',
        metavar='URL',
        help='extra package index, for instance https://download.pytorch.org/whl/cpu, '
        'which avoids the CUDA packages',
    )
    given = sys.argv[1:] if argv is None else argv
    # By hand, because Python's versions differ in whether they keep the '--'.
    end = given.index('--') if '--' in given else len(given)
    args, unknown = parser.parse_known_args(given[:end])
    return args, unknown + given[end + 1 :]


def main(argv: list[str] | None = None) -> int:
    """Sets up the environment and runs the job; returns the job's exit status."""
    args, rest = parse_args(argv)
    check_python(sys.version_info[:2])
    default, extras = STACKS[args.stack]
    venv = Path(args.venv or os.environ.get('MMROBUST_VENV') or ROOT / default)
    # Absolute, because every command runs in ROOT, wherever this one was called.
    venv = venv.expanduser().absolute()
    python = set_up(venv, extras, args.stack, args.torch_index)
    for number, command in enumerate(JOBS[args.job]):
        extra = rest if number == 0 else []
        status = subprocess.run([str(python), *command, *extra], cwd=ROOT).returncode
        if status:
            return status
    return 0


def check_python(version: tuple[int, ...]) -> None:
    """Refuses a Python that is too old, and warns of one that was not tested."""
    text = '.'.join(map(str, version))
    if version < OLDEST:
        fail(f'Python {text} is too old: run this with Python 3.10, 3.11 or 3.12.')
    if version > NEWEST:
        print(f'Python {text} was not tested; 3.10 to 3.12 were.', flush=True)


def set_up(venv: Path, extras: str, stack: str, torch_index: str | None) -> Path:
    """Makes the environment and installs this checkout, unless that is done already.

    Args:
        venv: folder of the environment.
        extras: extras to install, by commas.
        stack: names the constraints file.
        torch_index: extra package index, or None.

    Returns:
        The environment's Python.
    """
    python = venv / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    stamp = venv / 'mmrobust-setup'
    wanted = fingerprint(extras, stack)
    try:
        if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
            return python
    except OSError as error:
        fail(
            f'{venv} cannot be used ({error.strerror}): choose another folder with '
            '--venv.'
        )
    started = time.monotonic()
    print(f'Setting up {venv} (a few minutes the first time) ...', flush=True)
    make_venv(venv, python, ours=stamp.is_file())
    warn_of_space(venv)
    command = [str(python), '-m', 'pip', 'install', '--disable-pip-version-check', '-q']
    command += ['-c', f'constraints/{stack}.txt', '-e', f'.[{extras}]']
    if torch_index:
        command += ['--extra-index-url', torch_index]
    run_step(
        command,
        'the packages could not be installed: is there a network, and space on the '
        'disk? The reason stands in the lines above',
    )
    # Written last and in one piece: an interrupted set-up is done again.
    partial = stamp.with_name(f'{stamp.name}.{os.getpid()}')
    try:
        partial.write_text(wanted)
        os.replace(partial, stamp)
    except OSError as error:
        fail(f'{stamp} cannot be written ({error.strerror}).')
    print(f'Set up in {time.monotonic() - started:.0f} s.', flush=True)
    return python


def warn_of_space(venv: Path) -> None:
    """Says what the packages need where there is little left on the disk."""
    free = shutil.disk_usage(venv).free / 1e9
    if free < GIGABYTES:
        print(
            f'Only {free:.1f} GB are free in {venv}: with CUDA the packages take 6.5, '
            f'and 3 GB more in {tempfile.gettempdir()} while they are installed.',
            flush=True,
        )


def make_venv(venv: Path, python: Path, *, ours: bool) -> None:
    """Makes the environment, repairs a half-made one, keeps a good one.

    Args:
        venv: folder of the environment.
        python: the environment's Python.
        ours: whether an earlier set-up was completed in it, so that nothing of the
            user's is lost when it is emptied for another Python.
    """
    try:
        venv.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(
            f'{venv} cannot be made ({error.strerror}): '
            'choose a folder that can be written with --venv.'
        )
    version = venv_version(python)
    options = []
    if version and version != sys.version_info[:2]:
        if not ours:
            text = '.'.join(map(str, version))
            fail(
                f'{venv} holds an environment of Python {text}: '
                'delete it, run this with that Python, or choose a folder with --venv.'
            )
        options = ['--clear']
    elif version and has_pip(python):
        return
    run_step(
        [sys.executable, '-m', 'venv', *options, str(venv)],
        f'no virtual environment could be made in {venv}: install the venv module '
        '(Debian: apt install python3-venv) or choose a folder with --venv',
    )


def venv_version(python: Path) -> tuple[int, ...] | None:
    """The major and minor version of an environment's Python; None if it has none."""
    code = 'import sys; print(*sys.version_info[:2])'
    try:
        output = subprocess.run([str(python), '-c', code], capture_output=True)
    except OSError:
        return None
    return tuple(map(int, output.stdout.split())) or None


def has_pip(python: Path) -> bool:
    """Whether the environment has pip; one whose making was interrupted has none."""
    return (
        subprocess.run(
            [str(python), '-c', 'import pip'], stderr=subprocess.DEVNULL
        ).returncode
        == 0
    )


def fingerprint(extras: str, stack: str) -> str:
    """Changes with everything that decides what has to be installed."""
    digest = hashlib.sha256(f'{extras} {sys.version_info[:2]} {ROOT}'.encode())
    for name in ('pyproject.toml', 'setup.py', f'constraints/{stack}.txt'):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def run_step(command: list[str], advice: str) -> None:
    """Runs a command of the set-up; its failure ends the program with the advice."""
    try:
        status = subprocess.run(command, cwd=ROOT).returncode
    except OSError as error:
        fail(f'{advice} ({error.strerror}).')
    if status:
        fail(f'{advice}.')


def fail(sentence: str) -> NoReturn:
    """Ends the program with one sentence and status 2."""
    print(f'error: {sentence}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
    sys.exit(main())
