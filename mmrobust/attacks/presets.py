"""Finds attacks by the names that the command line and configs know them by."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import ConfigError
from ..registry import ATTACKS
from ..utils.validation import did_you_mean
from .apgd import APGD
from .base import Attack, Option, Preset
from .ensemble import Ensemble
from .noise import RandomNoise
from .patch import Patch
from .pgd import PGD
from .square import Square
from .transferable import TransferPGD
from .universal import Universal
from .universal_patch import UniversalPatch

# In the order of --help and of docs/attacks.md.
_CLASSES = (
    *(RandomNoise, PGD, APGD, TransferPGD, Square, Patch, Ensemble),
    *(Universal, UniversalPatch),
)

# Radii of the three-norm table of arXiv 2303.01870, for [0, 1] images and for 0-255.
_CUSTOMARY = {'l2': ('2.0', 510), 'l1': ('75', 19125)}

_PRESETS: dict[str, tuple[type[Attack], Preset]] = {
    name: (attack, preset)
    for aimed in (False, True)
    for attack in _CLASSES
    for name, preset in attack.presets.items()
    if preset.aimed == aimed
}

ATTACK_NAMES = tuple(_PRESETS)


def options_of(name: str) -> dict[str, Option]:
    """Returns the options of a named attack by their names.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in _PRESETS:
        raise ConfigError(
            f'attack {name!r} is unknown{did_you_mean(name, ATTACK_NAMES)}: choose '
            f'from {", ".join(ATTACK_NAMES)}.'
        )
    attack, preset = _PRESETS[name]
    options = {**attack.options, **preset.options}
    return {key: each for key, each in options.items() if key not in preset.without}


#: All options of all named attacks. A name stands for its flag: ``step_size`` for
#: ``--step-size``. An option with ``curve`` may be given several values.
OPTIONS: dict[str, Option] = {}
for _name in ATTACK_NAMES:
    for _key, _option in options_of(_name).items():
        OPTIONS.setdefault(_key, _option)


def takes(name: str, option: str) -> bool:
    """Returns whether a named attack has an option of :data:`OPTIONS`."""
    return option in options_of(name)


def help_text(option: str) -> str:
    """Returns the text for ``--help``, with the defaults if they differ by attack."""
    defaults: dict[Any, list[str]] = {}
    for name, (attack, preset) in _PRESETS.items():
        own = options_of(name).get(option)
        if own is not None and '.' not in own.parameter:
            value = inspect.signature(attack).parameters[own.parameter].default
            value = preset.settings.get(own.parameter, value)
            if value is not None:  # which depends on other settings
                defaults.setdefault(value, []).append(name)
    text = OPTIONS[option].help
    if len(defaults) < 2:
        return text
    *rare, (most, _) = sorted(defaults.items(), key=lambda pair: len(pair[1]))
    parts = [f'{value} for {", ".join(names)}' for value, names in rare]
    return f'{text} (default: {"; ".join(parts)}; else {most})'


def attack_preset(
    name: str, norm: str = 'linf', eps: float | str | None = None, **options: Any
) -> dict[str, Any]:
    """Returns the config of a named attack.

    Args:
        name: one of ``ATTACK_NAMES``.
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units; 4 by default for linf, to be given for l2 and l1.
            An attack whose options have neither norm nor eps keeps its own.
        **options: other options of :data:`OPTIONS`. One that is None, or that the
            attack does not have, is left out, so that one set of them serves several
            attacks.

    Returns:
        A config dict for the ``ATTACKS`` registry.

    Raises:
        ConfigError: for an unknown name or option, or for l2 or l1 without a radius.
    """
    known = options_of(name)
    for option in options:
        if option not in OPTIONS:
            raise ConfigError(
                f'{option!r} is no option of attacks{did_you_mean(option, OPTIONS)}: '
                f'choose from {", ".join(OPTIONS)}.'
            )
    if eps is None:
        if norm in _CUSTOMARY and 'eps' in known:
            unit, pixels = _CUSTOMARY[norm]
            raise ConfigError(
                f'the {norm} norm needs a radius: give eps in pixel units of 0-255, '
                f'for instance {pixels} for the {unit} that is customary for [0, 1] '
                'images.'
            )
        eps = 4
    attack, preset = _PRESETS[name]
    ball = {'norm': norm, 'eps': eps}
    config = {
        'type': f'mmrobust.{attack.__name__}',
        **preset.settings,
        **{key: value for key, value in ball.items() if key in known},
        **attack.customary.get(norm, {}),
    }
    for option, value in options.items():
        if option in known and value is not None:
            parameter, _, key = known[option].parameter.partition('.')
            given = {'name': config[parameter], key: value} if key else value
            config[parameter] = given
    return config


@ATTACKS.register_module(name='attack_preset')
def build_preset(name: str, **options: Any) -> Attack:
    """Builds a named attack, with the arguments of :func:`attack_preset`.

    In configs: ``dict(type='mmrobust.attack_preset', name='cls', eps=4)``.
    """
    attack: Attack = ATTACKS.build(attack_preset(name, **options))
    return attack


def attack_texts() -> dict[str, str]:
    """Returns what each named attack does, in a line for the end of ``--help``."""
    return {
        name: f'{attack.search}: {preset.maximises}'.replace('`', '')
        for name, (attack, preset) in _PRESETS.items()
    }


def attack_table() -> str:
    """Returns the table of all named attacks in docs/attacks.md, as Markdown."""
    rows = [
        '| name | search | what it maximises | source |',
        '| --- | --- | --- | --- |',
    ]
    for name, (attack, preset) in _PRESETS.items():
        settings = dict(preset.settings)
        if settings.get('objective') == 'targeted':
            settings['objective'] = {'name': 'targeted', 'target_class': 0}
        source = preset.source
        if source and '[' not in source:
            source = f'[{source}](https://arxiv.org/abs/{source})'
        # Some need a file, and cannot be built without.
        asks = attack.asks != 'nothing'
        search = _search(attack(**settings)) if asks else attack.search
        rows.append(f'| `{name}` | {search} | {preset.maximises} | {source} |')
    return '\n'.join(rows)


def _search(attack: Attack) -> str:
    settings, text = attack.describe(), attack.search
    steps, queries = settings['num_steps'], attack.asks == 'values'
    if steps and attack.members is None:
        one, many = ('query', 'queries') if queries else ('step', 'steps')
        text += f', {steps} {one if steps == 1 else many}'
    if settings.get('random_start') is False:
        text += ' from the image'
    if settings.get('keep_best') is False:
        text += ', last iterate'
    return text
