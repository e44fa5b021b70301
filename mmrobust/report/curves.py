"""Attacks that differ in one number only: AP against eps, steps or queries."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .result import AttackResult

# The settings that say the same number once more, of which only the axis counts.
_SAME = {'eps': ('eps_unit',), 'num_steps': ('num_queries',)}


@dataclass(frozen=True)
class Curve:
    """Attacks along an axis.

    Attributes:
        label: what they have in common, like ``'pgd, 10 steps'``.
        axis: ``'eps'``, ``'steps'`` or ``'queries'``.
        norm: of the perturbations, for the unit of eps.
        points: value on the axis and attack, by rising value.
    """

    label: str
    axis: str
    norm: str
    points: tuple[tuple[float, AttackResult], ...]


def find_curves(attacks: Sequence[AttackResult]) -> list[Curve]:
    """Groups the attacks that differ in eps alone, or in their steps alone.

    The settings decide. Attacks with a ``base`` come from one command that varies eps
    or the steps of that attack, so settings which derive from these (the step size,
    lists of an ensemble's settings) are not compared. Without it everything must
    agree but the step size, which may also be the one that derives from the axis.

    Returns:
        Curves of at least two different values, those against eps first; an attack may
        be on several.
    """
    return [
        *_along('eps', attacks, lambda settings: 'eps'),
        *_along(
            'num_steps',
            [attack for attack in attacks if attack.settings.get('num_steps')],
            lambda settings: 'queries' if settings.get('gradient_free') else 'steps',
        ),
    ]


def by_axis(curves: Sequence[Curve]) -> list[list[Curve]]:
    """The curves that can be drawn together: eps of different norms cannot."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        norm = curve.norm if curve.axis == 'eps' else ''
        groups.setdefault((curve.axis, norm), []).append(curve)
    return list(groups.values())


def _along(
    key: str,
    attacks: Sequence[AttackResult],
    axis_of: Callable[[Mapping[str, Any]], str],
) -> list[Curve]:
    groups: dict[str, dict[float, AttackResult]] = {}
    for attack in attacks:
        value = attack.settings.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value):
            for group in _groups(attack.settings, key):
                groups.setdefault(group, {}).setdefault(value, attack)
    found = {name: group for name, group in groups.items() if len(group) > 1}
    kept: list[dict[float, AttackResult]] = []
    # A step size may fit two rules by chance; the longer curve tells more.
    for longest in sorted(found.values(), key=len, reverse=True):
        names = {attack.name for attack in longest.values()}
        if not any(names <= {a.name for a in other.values()} for other in kept):
            kept.append(longest)
    ordered = [group for group in found.values() if any(group is each for each in kept)]
    return [_curve(key, group, axis_of) for group in ordered]


def _groups(settings: Mapping[str, Any], key: str) -> Iterable[str]:
    """The curves that an attack may be on."""
    left_out = {key, *_SAME[key], 'step_size'}
    others = {name: each for name, each in settings.items() if name not in left_out}
    if settings.get('base') is not None:
        nested = (dict, list, tuple)
        others = {k: v for k, v in others.items() if not isinstance(v, nested)}
        rules: list[Any] = ['any']
    else:
        rules = _step_rules(settings, key)
        if key == 'num_steps' and others.get('radius_schedule'):
            # Pairs of a radius and its share of the steps.
            schedule = others['radius_schedule']
            others['radius_schedule'] = [radius for radius, _ in schedule]
    return [json.dumps([others, rule], sort_keys=True, default=str) for rule in rules]


def _step_rules(settings: Mapping[str, Any], key: str) -> list[Any]:
    """The rules that may have given the step size."""
    step, eps, steps = (settings.get(k) for k in ('step_size', 'eps', 'num_steps'))
    if not step or not eps:
        return [step]
    rules: list[Any] = [step]
    if key == 'eps':
        rules.append(['of eps', f'{step / eps:.6g}'])
    elif steps and math.isclose(step, min(eps, 2.5 * eps / steps)):
        rules.append('derived')  # as PGD does
    return rules


def _curve(
    key: str,
    group: Mapping[float, AttackResult],
    axis_of: Callable[[Mapping[str, Any]], str],
) -> Curve:
    points = tuple(sorted(group.items()))
    first = points[0][1]
    settings = first.settings
    axis = axis_of(settings)
    name = settings.get('base') or _common_name([attack.name for _, attack in points])
    if key == 'eps':
        count = settings.get('num_steps')
        unit = 'queries' if settings.get('gradient_free') else 'steps'
        fixed = f'{count} {unit}' if count else ''
    else:
        fixed = f'eps {settings.get("eps", 0):g}'
    label = ', '.join(filter(None, [str(name), fixed]))
    return Curve(label, axis, str(settings.get('norm')), points)


def _common_name(names: Sequence[str]) -> str:
    """The names without the numbers that they end in."""
    ending = r'[-_. ]*(eps|steps|queries)?[-_. ]*[\d.]+$'
    return ' / '.join(dict.fromkeys(re.sub(ending, '', name) or name for name in names))
