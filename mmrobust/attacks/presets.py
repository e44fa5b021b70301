"""Attacks by name, as ``tools/test.py --attack NAME`` knows them."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .apgd import LARGER_RADII

# Steps and start of cls, reg and cwa are those of the COCO evaluation in the code of
# arXiv 2305.17438: eps 4, step 1, 10 steps, from the clean image.
_PRESETS: dict[str, dict[str, Any]] = {
    'noise': {'type': 'mmrobust.RandomNoise'},
    'fgsm': {'type': 'mmrobust.PGD', 'num_steps': 1, 'random_start': False},
    'pgd': {'type': 'mmrobust.PGD', 'num_steps': 20},
    'cls': {'type': 'mmrobust.PGD', 'objective': 'cls', 'random_start': False},
    'reg': {'type': 'mmrobust.PGD', 'objective': 'reg', 'random_start': False},
    'cwa': {'type': 'mmrobust.PGD', 'objective': 'cwa', 'random_start': False},
    'apgd': {'type': 'mmrobust.APGD', 'num_steps': 20},
    'mim': {'type': 'mmrobust.TransferPGD'},
    'dim': {'type': 'mmrobust.TransferPGD', 'diversity_prob': 0.5},
    'tim': {'type': 'mmrobust.TransferPGD', 'kernel_size': 15},
    'square': {'type': 'mmrobust.Square', 'num_queries': 1000},
    'ensemble': {'type': 'mmrobust.Ensemble'},
    **{
        name: {'type': 'mmrobust.PGD', 'num_steps': 20, 'objective': name}
        for name in (
            'vanish',
            'fabricate',
            'mislabel',
            'targeted',
            'background',
            'dag',
            'rpn',
            'objectness',
        )
    },
}

ATTACK_NAMES = tuple(_PRESETS)

# Attacks that have nothing to choose but norm, radius and version; and FGSM, which has
# no number of steps.
_FIXED = ('noise', 'ensemble')

# Radii of the three-norm table of arXiv 2303.01870, for [0, 1] images and for 0-255.
_CUSTOMARY = {'l2': ('2.0', 510), 'l1': ('75', 19125)}


def takes(name: str, setting: str) -> bool:
    """Whether a named attack has a setting of :func:`attack_preset`."""
    if setting == 'version':
        return name == 'ensemble'
    if setting in ('norm', 'eps'):
        return True
    if setting == 'num_steps' and name == 'fgsm':
        return False
    return name not in _FIXED


def attack_preset(
    name: str,
    norm: str = 'linf',
    eps: float | str | None = None,
    step_size: float | str | None = None,
    num_steps: int | None = None,
    restarts: int | None = None,
    target: str | None = None,
    target_class: int | str | None = None,
    version: str | None = None,
) -> dict[str, Any]:
    """Builds the config of a named attack.

    Args:
        name: one of ``ATTACK_NAMES``.
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units; 4 by default for linf. l2 and l1 have no customary
            radius in pixel units, so it must be given there.
        step_size: step in pixel units, by default derived from eps and num_steps;
            ``apgd`` and ``square`` find their own whatever is given.
        num_steps: by default 10 for ``cls``, ``reg``, ``cwa``, ``mim``, ``dim`` and
            ``tim``, 1000 (queries) for ``square``, else 20 (a detector's passes are
            costly: papers on classifiers run APGD for 100); ``fgsm`` has one step
            whatever is given. ``apgd`` in l1 starts with larger radii and takes at
            least 3.
        restarts: number of runs, by default 1.
        target: of ``mislabel`` and ``dag``, see :class:`mmrobust.objective.Objective`.
            Other attacks leave it out, so that one setting serves several attacks.
        target_class: of ``targeted``, which needs it, by name or number; of no other.
        version: of ``ensemble``, see :class:`Ensemble`; of no other.

    Returns:
        A config dict for the ``ATTACKS`` registry.

    Raises:
        ConfigError: for an unknown name or target, l2 or l1 without a radius, or
            ``targeted`` without a class.
    """
    if name not in _PRESETS:
        raise ConfigError(
            f'attack {name!r} is unknown: choose from {", ".join(ATTACK_NAMES)}.'
        )
    if eps is None:
        if norm in _CUSTOMARY:
            unit, pixels = _CUSTOMARY[norm]
            raise ConfigError(
                f'the {norm} norm needs a radius: give eps in pixel units of 0-255, '
                f'for instance {pixels} for the {unit} that is customary for [0, 1] '
                'images.'
            )
        eps = 4
    config = {**_PRESETS[name], 'norm': norm, 'eps': eps}
    given = {'step_size': step_size, 'num_steps': num_steps, 'restarts': restarts}
    if name == 'fgsm':
        given = {'step_size': step_size}
    if name in _FIXED:
        given = {'version': version} if name == 'ensemble' else {}
    if name in ('mislabel', 'dag') and target is not None:
        config['objective'] = {'name': name, 'target': target}
    if name == 'targeted':
        if target_class is None:
            raise ConfigError(
                "the attack 'targeted' needs the class that objects are to be taken "
                "for: give target_class, for instance 'person' or 0."
            )
        config['objective'] = {'name': name, 'target_class': target_class}
    if name == 'square':
        given = {'num_queries': num_steps, 'restarts': restarts}
    if name == 'apgd':
        given['step_size'] = None
        if norm == 'l1':
            config['radius_schedule'] = LARGER_RADII
    config.update({key: value for key, value in given.items() if value is not None})
    return config
