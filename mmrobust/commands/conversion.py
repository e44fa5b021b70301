"""Options that make a standard config robust, for training with it or writing it."""

from __future__ import annotations

import argparse
import os
import textwrap
from typing import Any

from mmengine.config import Config

from .. import cli
from ..errors import ConfigError
from ..names import listed, names

#: Settings of :func:`mmrobust.robustify`, by the names of their options.
SETTINGS = (
    'eps',
    'norm',
    'replays',
    'num_steps',
    'schedule',
    'preset',
    'backbone',
    'backbone_weights',
)


def add_options(parser: Any) -> None:
    """Adds the options of :data:`SETTINGS`.

    Args:
        parser: a parser, or a group of one.
    """
    add = parser.add_argument
    add('--eps', help='radius of the perturbation (default 4)')
    cli.suggest(
        add('--norm', help='linf (default), l2 or l1'),
        names()['options']['norm']['choices'],
    )
    add('--replays', type=int, help='updates per batch (free: default 4; pbcat: 8)')
    add(
        '--num-steps',
        type=int,
        help='steps of the attack in training (pgd, mixed: default 3; mtd, cwat: 1)',
    )
    add(
        '--schedule',
        type=float,
        help="updates relative to the config's own (default 2 for free, 4 for pbcat, "
        'else 1)',
    )
    presets, backbones = names()['presets'], names()['backbones']
    cli.suggest(add('--preset', help=f'one of: {listed("presets")}'), presets)
    cli.suggest(
        add('--backbone', help=f'swap in one of: {listed("backbones")}'), backbones
    )
    add('--backbone-weights', help="file or URL of the backbone's weights, or none")


def convert(cfg: Config, method: str, args: argparse.Namespace) -> tuple[Config, str]:
    """Makes a config robust, and prints what that changes.

    Args:
        cfg: a standard config.
        method: how it is to train.
        args: the command line, with the options of :func:`add_options`.

    Returns:
        The config, and the changes in lines of text.

    Raises:
        ConfigError: with the reason why it cannot be converted.
    """
    from ..recipe import robustify, summary  # bring torch

    robust = robustify(cfg, method, **cli.given(args, SETTINGS))
    text = '\n'.join(['Changed in the config:', *summary(cfg, robust)])
    if os.environ.get('RANK', '0') == '0':
        print(text)
    return robust, text


def check_target(path: str, config: str, option: str) -> None:
    """Makes sure that a file is none that must not be written over.

    Args:
        path: where a config is to be written.
        config: the one that it is made of.
        option: what the command line calls the path.

    Raises:
        ConfigError: if it is no Python file, or the config itself.
    """
    if not path.endswith('.py'):
        raise ConfigError(f'{option} {path!r} must be a .py file.')
    if os.path.realpath(path) == os.path.realpath(config):
        raise ConfigError(f'{option} {path!r} is CONFIG itself: give another file.')


def write(cfg: Config, path: str, changes: str, option: str) -> None:
    """Writes a config in one piece, with what was changed as a comment.

    Args:
        cfg: the config.
        path: where to.
        changes: lines of text.
        option: what the command line calls the path.

    Raises:
        ConfigError: if the file cannot be written.
    """
    folder = os.path.dirname(path) or '.'
    cli.check_work_dir(folder, f'folder of {option}', option)
    partial = os.path.join(folder, f'.{os.getpid()}.{os.path.basename(path)}')
    cfg.dump(partial)
    with open(partial, encoding='utf-8') as file:
        content = file.read()
    with open(partial, 'w', encoding='utf-8') as file:
        file.write(textwrap.indent(changes, '# ') + f'\n{content}')
    os.replace(partial, path)
    print(f'Wrote {path}; train with: {cli.tool("train")} {path}')
