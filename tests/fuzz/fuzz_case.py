"""What a case is, and the values that cases put where others belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

Prepare = Callable[[Path, Path], None]

# In arguments and in files, replaced by the folders of the project and of the case.
PROJECT, HERE = '{project}', '{here}'


@dataclass
class Case:
    """A tool, its arguments, and what is wrong with them or with what they name.

    Attributes:
        name: by which it can be repeated.
        tool: the script.
        argv: its arguments.
        culprits: one of them has to be in the message; none are known if empty.
        files: text by path in the case's folder.
        prepare: makes what else the case needs, in the folders of project and case.
        fails: whether success would be a mistake.
    """

    name: str
    tool: str
    argv: list[str]
    culprits: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    prepare: Prepare | None = None
    fails: bool = False

    @property
    def kind(self) -> str:
        """Commands, configs, data or checkpoints."""
        return self.name.split('-')[0]

    def __str__(self) -> str:
        return f'{self.name}: {self.tool} {self.argv}'


class Source(str):
    """A value that is written to a config as it stands here."""


# What somebody could write on a command line in place of anything.
WORDS = (
    *('', ' ', 'x', '-1', '0', '0.5', '-0', '1e400', 'nan', 'inf', '-inf', '4/0'),
    *('999999999999999999999', 'é漢字', 'None', 'True', '[]', '{}', 'a b', "it's"),
    *('-', '4,', '%s', '{x}', '$HOME', '٣', 'x' * 5000, 'pgd\n', '0x10', '1_0', '∞'),
)

# What somebody could write into a config in place of anything.
VALUES: tuple[Any, ...] = (
    *(None, True, '', 'x', 'é漢字', -1, 0, 0.5, 10**400, -(10**15), 1e308, -1e-300),
    *(Source("float('nan')"), Source("float('inf')"), Source("-float('inf')")),
    *([], [None], ['x'], [1, 'x', None], {}, {'x': 1}, {'type': 'x'}, {'type': None}),
    *({'type': 'SGD'}, {'type': 'ResNet'}, (), ((),), [[]], [{}], b'x', 1j),
    *(Source('lambda *a, **k: 0'), Source('len'), Source('dict'), Source('object()')),
    *('4/255', '-4/255', 'total', {1: 2}, {None: None}, {'_delete_': True}),
)


def source(value: Any) -> str:
    """A value as Python writes it."""
    if isinstance(value, Source):
        return str(value)
    if isinstance(value, dict):
        inside = ', '.join(f'{k!r}: {source(v)}' for k, v in value.items())
        return f'{{{inside}}}'
    if isinstance(value, (list, tuple)):
        inside = ''.join(f'{source(v)}, ' for v in value)
        return f'[{inside}]' if isinstance(value, list) else f'({inside})'
    return repr(value)


def config_text(settings: dict[str, Any]) -> str:
    """A config file."""
    return ''.join(f'{key} = {source(value)}\n' for key, value in settings.items())


def misspelt(rng: Random, word: str) -> str:
    """The word with a letter too many, too few or wrong."""
    place = rng.randrange(max(len(word), 1))
    kind = rng.choice(('more', 'less', 'case'))
    if kind == 'more' or len(word) < 2:
        return word[:place] + 'x' + word[place:]
    if kind == 'less':
        return word[:place] + word[place + 1 :]
    return word.swapcase()
