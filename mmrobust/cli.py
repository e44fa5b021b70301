"""Shared parts of the command-line tools: options, early checks, errors in a line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from mmengine import registry
from mmengine.config import Config
from mmengine.config import DictAction as MMEngineDictAction
from mmengine.logging import MMLogger
from mmengine.registry import Registry

from . import registry as our_registry
from .compat import after_import, allow_mmengine_checkpoints
from .compat.checkpoints import refuse_code
from .errors import ConfigError, short
from .names import names
from .utils.configs import check_sections, merge_options, read_config
from .utils.validation import did_you_mean

_MIN_FREE_BYTES = 64 * 2**20

# Shows where an error comes from that would be a sentence otherwise.
TRACEBACK = 'MMROBUST_TRACEBACK'

#: What ``--help`` calls the program, by default the script.
PROGRAM: str | None = None

_TYPES = {'int': int, 'str': str}

_LAUNCHED = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR'),
}
_STARTERS = {'pytorch': 'torchrun', 'slurm': 'srun', 'mpi': 'mpirun'}


def run(main: Callable[[], None]) -> None:
    """Runs a tool.

    A user's mistake ends with one sentence and exit status 2. Any other error keeps its
    traceback and ends with status 1; what was going on (:func:`mmrobust.errors.doing`)
    is printed before it, a line for each note. Tracebacks also go to the log file, and
    those of mistakes to stderr with ``MMROBUST_TRACEBACK=1`` in the environment.
    """
    # Again: while mmengine was imported itself, it could not be asked for its names.
    after_import('torch', allow_mmengine_checkpoints)
    after_import('torch', refuse_code)
    try:
        main()
    except Exception as error:
        if not isinstance(error, ConfigError) or error.__cause__ is not None:
            _log_traceback()
        sentence = as_sentence(error)
        if sentence is None or os.environ.get(TRACEBACK, '0') not in ('', '0'):
            for note in reversed(getattr(error, '__notes__', [])):
                print(f'error {note}:', file=sys.stderr)
            raise
        print(f'error: {sentence}', file=sys.stderr)
        sys.exit(2)


def _log_traceback() -> None:
    """Writes the traceback of what is being handled to the log file alone."""
    logger = MMLogger.get_current_instance()
    record = logging.LogRecord(
        *('mmrobust', logging.ERROR, __file__, 0, traceback.format_exc(), None, None)
    )
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def as_sentence(error: BaseException) -> str | None:
    """Says in one sentence what the user can change, or None for any other error."""
    text = ' '.join(str(error).split())
    if isinstance(error, ConfigError):
        # Of what somebody gave, which may be anything.
        text = re.sub(r' at 0x[0-9a-f]+', '', text)
        return re.sub(r'\S{300,}', lambda found: f'{found[0][:40]}...', text)
    if isinstance(error, FileNotFoundError):
        path = error.filename or text.rsplit("directory: '", 1)[-1].rstrip("'")
        return f'{path} does not exist: check the path, or data_root in the config.'
    if isinstance(error, PermissionError):
        return f'no right to use {error.filename}: choose another place or change it.'
    if isinstance(error, OSError) and error.errno == 28:
        return (
            f'no space left on the device while writing {error.filename or "a file"}.'
        )
    if isinstance(error, KeyError) and 'is not in the' in text:
        text = text.split('. Please check', 1)[0].strip('\'"')
        name, _, where = text.partition(' is not in the ')
        if reason := _failed_import(name.rpartition('.')[0]):
            return f'{text}, since {reason}.'
        kind = where.removesuffix(' registry').split('::')[-1]
        near = did_you_mean(name.split('.')[-1], registered(kind))
        return f'{text}{near}: check the name.'
    if isinstance(error, json.JSONDecodeError):
        return f'an annotation file is no valid JSON ({text}): is it complete?'
    if isinstance(error, ValueError) and 'need at least one array to conc' in text:
        # numpy's words, when mmengine serialises an empty list of images.
        return 'a dataset is empty: check ann_file, data_prefix and filter_cfg.'
    if isinstance(error, AssertionError) and 'failed to load image: ' in text:
        # From a worker process, the message is the end of a traceback.
        path = text.rsplit('failed to load image: ', 1)[1]
        return f'image {path} cannot be decoded: replace or remove it.'
    if isinstance(error, AssertionError) and 'AmpOptimizerWrapper' in text:
        return (
            'AmpOptimWrapper needs a GPU, and torch sees none: use '
            "optim_wrapper.type='mmrobust.BFloat16OptimWrapper', or OptimWrapper."
        )
    if 'imdecode' in text and 'buf.empty()' in text:
        return 'an image file is empty: look for files of 0 bytes among the images.'
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or _is_torchs(error, 'OutOfMemoryError'))
    ):
        return (
            f'the memory is not enough ({short(text)}): take smaller images, '
            'batches or models.'
        )
    return None


def _is_torchs(error: BaseException, name: str) -> bool:
    """Whether an error is of a class of torch's, which this module does not import."""
    return any(
        kind.__name__ == name and kind.__module__.startswith('torch')
        for kind in type(error).__mro__
    )


def _failed_import(scope: str) -> str:
    """Says why a scope's package cannot be imported, which mmengine keeps to itself.

    Args:
        scope: that of a registered name; the config's own if it is empty.
    """
    current = registry.DefaultScope.get_current_instance()
    scope = scope or (current.scope_name if current else 'mmengine')
    try:
        import_module(f'{scope}.registry')
    except ImportError as error:
        if error.name != f'{scope}.registry':
            return f'{scope} cannot be imported: {short(str(error))}'
    return ''


def registered(name: str) -> list[str]:
    """Returns what is in the registries of a name, like ``'model'``, of all scopes."""
    found: list[str] = []
    for each in (*vars(registry).values(), *vars(our_registry).values()):
        if isinstance(each, Registry) and each.name == name:
            for scope in (each, *each.children.values()):
                found += scope.module_dict
    return found


class Parser(argparse.ArgumentParser):
    """argparse's parser, with mistakes in one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{'prog': PROGRAM, **settings})

    def error(self, message: str) -> NoReturn:
        """Raises what :func:`run` prints."""
        text = ' '.join(message.split())
        if flag := re.match(r'unrecognized arguments: (--[\w-]+)', text):
            text += did_you_mean(flag[1], self._option_string_actions)
        raise ConfigError(f'{text}; --help lists all options.')


class DictAction(MMEngineDictAction):
    """mmengine's reader of ``KEY=VALUE``, which fails as argparse's do."""

    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> None:
        """Reads what stands behind an option."""
        try:
            super().__call__(parser, *args, **kwargs)
        except (ValueError, AssertionError) as error:
            values = args[1] if len(args) > 1 else kwargs.get('values')
            words = ' '.join(values) if isinstance(values, list) else values
            raise ConfigError(
                f'--cfg-options {words!r} cannot be read: give KEY=VALUE, lists as '
                'KEY="[a,b]".'
            ) from error


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds the option that overrides settings of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value; lists as key="[a,b]" or '
        'key=a,b. data_root=PATH is also put into the datasets and evaluators',
    )


def tool(name: str) -> str:
    """How the tool of a name is called, as this one was."""
    return f'mmrobust {name}' if PROGRAM else f'python tools/{name}.py'


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that mmdet's train and test tools have in common."""
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes --local-rank since torch 2.0.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by launchers'
    )


class Flag(NamedTuple):
    """A flag that sets a setting of the test loop.

    Attributes:
        attacks: what AttackTestLoop calls the setting, None if it has none.
        autoattack: what AutoAttackTestLoop calls it.
        help: text for ``--help``.
        argument: further arguments of ``add_argument``.
    """

    attacks: str | None
    autoattack: str | None
    help: str
    argument: dict[str, Any] = {}


def suggest(action: argparse.Action, values: Iterable[str]) -> None:
    """Says what shells may complete where argparse does not restrict the values."""
    action.suggested = list(values)  # type: ignore[attr-defined]


def add_attack_options(
    parser: Any, curves: bool = True, more: Mapping[str, str] | None = None
) -> None:
    """Adds the options of all attacks, as their classes describe them.

    Args:
        parser: a parser, or a group of one.
        curves: whether several sizes or numbers of steps make a curve.
        more: by option, what is to be added to its help; it takes several values if
            that begins with ``'; several'``.
    """
    for name, option in names()['options'].items():
        added = (more or {}).get(name, '')
        curve = curves and option['curve']
        # Choices are not argparse's to check: the attacks say more.
        choices = option['choices']
        listed = f'{{{",".join(choices)}}}' if choices else None
        action = parser.add_argument(
            '--' + name.replace('_', '-'),
            help=option['help'] + '; several give a curve' * curve + added,
            type=_TYPES[option['type']],
            metavar=option['metavar'] or listed,
            nargs='+' if curve or added.startswith('; several') else None,
        )
        suggest(action, choices)


def attack_list(**more: str) -> str:
    """Returns a line for each named attack, for the end of ``--help``."""
    lines = [
        textwrap.fill(
            text, 79, initial_indent=f'  {name:11} ', subsequent_indent=' ' * 14
        )
        for name, text in {**names()['attacks'], **more}.items()
    ]
    return '\n'.join(['attacks, their search and what it makes large:', *lines])


def add_speed_options(parser: Any) -> None:
    """Adds the options of :class:`mmrobust.utils.acceleration.Acceleration`.

    Args:
        parser: a parser, or a group of one.
    """
    parser.add_argument(
        '--autocast',
        action='store_true',
        help='losses and gradients in bfloat16, never the predictions that are scored',
    )
    parser.add_argument(
        '--channels-last',
        action='store_true',
        help='the memory layout that matrix units of GPUs want',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='torch.compile for the losses and gradients of backbone and neck',
    )


def speed_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says for a loop's ``speed``."""
    given = {
        'autocast': 'bfloat16' if args.autocast else None,
        'channels_last': args.channels_last,
        'compile': args.compile,
    }
    return {key: value for key, value in given.items() if value}


def given(args: argparse.Namespace, options: Iterable[str]) -> dict[str, Any]:
    """Returns those of the options that stand on the command line."""
    found = {name: getattr(args, name) for name in options}
    return {name: value for name, value in found.items() if value is not None}


def load_config(
    args: argparse.Namespace, convert: Callable[[Config], Config] | None = None
) -> Config:
    """Reads the config with the command line's overrides and decides the work dir.

    Args:
        args: the command line.
        convert: see :func:`configure`.

    Raises:
        ConfigError: if the config is missing or no config, or the work dir unusable.
    """
    if 'LOCAL_RANK' not in os.environ:
        os.environ['LOCAL_RANK'] = str(args.local_rank)
    check_launcher(args.launcher)
    cfg = configure(args, convert)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = os.path.splitext(os.path.basename(args.config))[0]
        cfg.work_dir = os.path.join('./work_dirs', name)
    check_work_dir(cfg.work_dir)
    return cfg


def configure(
    args: argparse.Namespace, convert: Callable[[Config], Config] | None = None
) -> Config:
    """Reads the config with the command line's overrides.

    Args:
        args: the command line.
        convert: applied before the overrides, which have the last word.
    """
    cfg = read_config(args.config)
    check_sections(cfg)
    if convert is not None:
        cfg = convert(cfg)
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
        check_sections(cfg)
    return cfg


def check_launcher(launcher: str) -> None:
    """Makes sure that a process was started by what ``--launcher`` names.

    Raises:
        ConfigError: if its variables are not in the environment.
    """
    missing = [name for name in _LAUNCHED.get(launcher, ()) if name not in os.environ]
    if missing:
        raise ConfigError(
            f'--launcher {launcher} needs {missing[0]} in the environment: start the '
            f'tool by {_STARTERS[launcher]}, or leave --launcher out.'
        )


def check_work_dir(
    path: str, name: str = 'work dir', option: str = '--work-dir'
) -> None:
    """Makes sure that results can be written, before anything is computed.

    Args:
        path: the folder.
        name: how it is called in the message.
        option: by which another one can be given.

    Raises:
        ConfigError: if the folder cannot be made or written, or the disk is full.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f'{name} {path!r} cannot be written ({error.strerror}): give another one '
            f'with {option}.'
        ) from error
    free = shutil.disk_usage(path).free
    if free < _MIN_FREE_BYTES:
        raise ConfigError(
            f'{name} {path!r} has only {free / 2**20:.0f} MiB left: free some space or '
            f'give another one with {option}.'
        )
