"""Says in a few sentences what the figures of a report come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .document import Figure, number
from .results import AttackResult, Headline, worst_figure


def verdict(
    headline: Headline,
    attacks: Sequence[AttackResult],
    worst_case: Mapping[str, Any] | None,
    doubts: int,
    corruptions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Returns what is left under the strongest attack, beside what noise leaves.

    Args:
        headline: the figure by which passes are compared.
        attacks: those that were made.
        worst_case: the lowest combination of passes, if it was searched.
        doubts: how many sentences the checks have found.
        corruptions: see :func:`.corruptions.summaries`; of the pictures alone, their
            mean is told beside.

    Returns:
        Nothing where there is no figure to speak of.
    """
    benign = headline.benign
    clean = [each for each in attacks if not each.settings.get('corruption')]
    searched = [each for each in clean if not each.baseline]
    found = [(headline.of(each), each) for each in searched]
    known = [(figure, each) for figure, each in found if figure]
    means = [
        Figure(each['mPC'], percent=headline.percent)
        for each in corruptions
        if not each['attack']
    ]
    if not benign or not (known or means):
        return ''
    text = f'Of {headline.name} {_text(benign)}, '
    if known:
        figure, strongest = min(known, key=lambda pair: pair[0].value)
        name = f'**{strongest.name}** ({_ball(strongest)})'
        worst = worst_figure(worst_case)
        if worst and is_lower(worst.value, figure):
            figure = worst
            name = 'the worst of all passes on each image'
        text += f'**{_text(figure)}** is left under {name}{_share(figure, benign)}'
        text += _noise(headline, clean, strongest)
        text += ', and ' if means else ''
    for mean in means:
        text += f'**{_text(mean)}** on corrupted pictures on average (mPC)'
        text += _share(mean, benign)
    text += '.'
    if doubts:
        many = 'a check says' if doubts == 1 else f'{doubts} checks say'
        text += f' But {many} below why these figures may not hold.'
    return text


def is_lower(value: float, figure: Figure) -> bool:
    """Returns whether a value is lower than a figure, as it is written."""
    return _text(replace(figure, value=value)) != _text(figure) and value < figure.value


def _noise(
    headline: Headline, attacks: Sequence[AttackResult], strongest: AttackResult
) -> str:
    """Says what a baseline of the same size leaves, if there was one."""
    for attack in attacks:
        figure = headline.of(attack)
        if not attack.baseline or not figure or _ball(attack) != _ball(strongest):
            continue
        if attack.settings.get('patch') == strongest.settings.get('patch'):
            return f'; {attack.name} of the same size leaves {_text(figure)}'
    return ''


def _ball(attack: AttackResult) -> str:
    settings = attack.settings
    return f'{settings.get("norm")}, eps {settings.get("eps", 0):g}'


def _text(figure: Figure) -> str:
    return number(figure.value, 2 if figure.percent else 3)


def _share(figure: Figure, benign: Figure) -> str:
    return f', {figure.value / benign.value:.0%} of it' if benign.value > 0 else ''
