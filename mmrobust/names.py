"""What ``--help`` lists, in a file of its own: attacks, methods and other names.

Attacks describe themselves by their classes, which take seconds to import with torch
and mmdet behind them. ``names.json`` repeats what a command line needs of them before
there is anything to compute. tests/test_names.py compares it with the classes;
``python -m mmrobust.names`` writes it anew.
"""

from __future__ import annotations

import json
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix('.json')


@lru_cache(maxsize=1)
def names() -> dict[str, Any]:
    """Returns what is in the file; see :func:`collect`."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding='utf-8'))
    return found


def attack_names() -> list[str]:
    """Returns the names of all attacks, in the order of ``--help``."""
    return list(names()['attacks'])


def listed(kind: str) -> str:
    """Returns all names of a kind, for a sentence."""
    return ', '.join(names()[kind])


def is_corruption(name: str) -> bool:
    """Whether ``--attack`` knows a name as a corruption or a set of them."""
    return name in names()['corruption_sets'] or name in names()['corruptions']


def collect() -> dict[str, Any]:
    """Asks the classes for what the file has to hold.

    Returns:
        ``attacks``: what each does, by name; ``options``: the arguments of each for
        argparse, and whether it makes curves; and lists of the other names.
    """
    from .api import verify
    from .attacks import CORRUPTION_SETS, OPTIONS, attack_texts, help_text
    from .autoattack import SETTINGS, VERSIONS
    from .corruptions import NAMES
    from .recipe import BACKBONES, METHODS, PRESETS
    from .studies.backbone_plan import MODES
    from .weights import NORMALIZATIONS

    return {
        'attacks': attack_texts(),
        'options': {
            name: {
                'help': help_text(name),
                'type': option.type.__name__,
                'choices': list(option.choices or ()),
                'metavar': option.metavar,
                'curve': option.curve,
            }
            for name, option in OPTIONS.items()
        },
        'corruption_sets': list(CORRUPTION_SETS),
        'corruptions': list(NAMES),
        'autoattack_members': list(SETTINGS),
        'autoattack_versions': list(VERSIONS),
        'methods': list(METHODS),
        'presets': list(PRESETS),
        'backbones': list(BACKBONES),
        'normalizations': list(NORMALIZATIONS),
        'transfer_modes': list(MODES),
        'tolerance': signature(verify).parameters['tolerance'].default,
    }


if __name__ == '__main__':
    FILE.write_text(json.dumps(collect(), indent=1) + '\n', encoding='utf-8')
