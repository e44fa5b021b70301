"""Means over corruptions, mPC and rPC, and the tables of corruptions by severity.

As Michaelis et al. (arXiv 1907.07484, section 2.3) define them: mPC is the mean over
corruptions and severities of the performance, rPC the share of the performance on clean
pictures (P) that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from ..corruptions import BENCHMARK, GROUP_OF, GROUPS, NAMES, SEVERITIES
from .document import MISSING, Figure, Part, Section, Table, is_number, number
from .results import AttackResult, Headline, shown_metrics

# Of names of passes, by corruption: intervals of their mean, as mPC is one, and of its
# share of the benign figure.
Intervals: TypeAlias = (
    'Callable[[list[list[str]]], tuple[dict[str, Any], dict[str, Any]] | None]'
)


def summaries(
    headline: Headline,
    benign: Mapping[str, Any],
    attacks: Sequence[AttackResult],
    intervals: Intervals = lambda _: None,
) -> list[dict[str, Any]]:
    """Sums the passes on corrupted pictures up.

    Args:
        headline: the figure by which passes are compared.
        benign: metrics on clean pictures.
        attacks: all passes.
        intervals: see above; None where there are none.

    Returns:
        For the corruptions alone, and for every attack that was made on them: the
        ``attack`` (None of the corruptions alone), the name of the ``figure``, ``P``,
        ``mPC`` and ``rPC`` (with ``mPC_interval``, ``rPC_interval``), over which
        ``corruptions`` and ``severities``, whether that is the ``benchmark`` of the
        paper; mean, share and worst pass of each of the ``groups``; and P, mPC and rPC
        of the evaluator's ``metrics``. Of the four corruptions beyond the benchmark
        nothing enters mPC, unless there are no others.
    """
    found = []
    for label, passes in _by_attack(attacks).items():
        counted = [a for a in passes if a.settings['corruption'] in BENCHMARK] or passes
        names = _in_order({a.settings['corruption'] for a in counted})
        severities = sorted({a.settings['severity'] for a in counted})
        before = headline.benign.value if headline.benign else None
        figure = _means(before, [(a, _value(headline.of(a))) for a in counted])
        if figure['mPC'] is None:
            continue
        of_each = [
            [a.name for a in counted if a.settings['corruption'] == name]
            for name in names
        ]
        ends = intervals(of_each) or (None, None)
        metrics = {
            key: _means(benign[key], [(a, a.metrics.get(key)) for a in counted])
            for key in shown_metrics(benign)
            if is_number(benign[key])
        }
        found.append(
            {
                'attack': label or None,
                'figure': headline.name,
                **figure,
                'mPC_interval': ends[0],
                'rPC_interval': ends[1],
                'corruptions': names,
                'severities': severities,
                'benchmark': _is_benchmark(counted),
                'groups': _groups(headline, passes),
                'metrics': metrics,
                'passes': [attack.name for attack in passes],
            }
        )
    return found


def mean_figures(
    headline: Headline, found: Sequence[Mapping[str, Any]]
) -> list[tuple[str, Figure | None]]:
    """Returns labels and figures of the means, for the chart of the page."""
    figures = []
    for each in found:
        one = len(each['passes']) == 1
        name = f'{each["attack"]} on corruptions' if each['attack'] else 'corruptions'
        label = each['passes'][0] if one else f'{name} (mPC)'
        figure = Figure.resampled(each['mPC_interval']) or Figure.of(each['mPC'])
        figures.append((label, figure and replace(figure, percent=headline.percent)))
    return figures


def corruption_sections(
    headline: Headline,
    found: Sequence[Mapping[str, Any]],
    attacks: Sequence[AttackResult],
) -> list[Section]:
    """Tabulates corruptions by severity, and their groups, if there are several."""
    several = [each for each in found if len(each['passes']) > 1]
    return [_section(headline, each, attacks) for each in several]


def _section(
    headline: Headline, found: Mapping[str, Any], attacks: Sequence[AttackResult]
) -> Section:
    passes = {
        (a.settings['corruption'], a.settings['severity']): headline.of(a)
        for a in attacks
        if a.name in found['passes']
    }
    severities = sorted({severity for _, severity in passes})
    rows, title = [], found['attack']
    for name in _in_order({name for name, _ in passes}):
        figures = [passes.get((name, severity)) for severity in severities]
        known = [each.value for each in figures if each]
        mean = number(sum(known) / len(known)) if known else MISSING
        cells = [each.text() if each else MISSING for each in figures]
        means = [mean] if len(severities) > 1 else []
        rows.append([name, GROUP_OF[name], *cells, *means])
    heads = [f'severity {severity}' for severity in severities]
    heads += ['mean'] if len(severities) > 1 else []
    groups = [
        [
            group,
            number(each['mean']),
            _percent(each['relative']),
            f'{each["worst"]["corruption"]} {each["worst"]["severity"]}',
            number(each['worst']['value']),
        ]
        for group, each in found['groups'].items()
    ]
    parts: list[Part] = [
        _sentence(found),
        Table(['corruption', 'group', *heads], rows, texts=2),
        Table(['group', 'mean', 'share of P', 'worst', 'its figure'], groups),
    ]
    key = 'corruptions' + (f'-{title}' if title else '')
    name = f'Corruptions under {title}' if title else 'Corruptions'
    return Section(key, name, parts)


def _sentence(found: Mapping[str, Any]) -> str:
    mean = Figure.resampled(found['mPC_interval']) or Figure.of(found['mPC'])
    share = _percent(found['rPC'])
    if (ends := Figure.resampled(found['rPC_interval'])) and ends.low is not None:
        share += f' [{_percent(ends.low)}, {_percent(ends.high)}]'
    severities = ', '.join(map(str, found['severities']))
    count = len(found['corruptions'])
    text = (
        f'{found["figure"]}: P {number(found["P"])} on clean pictures, '
        f'**mPC {mean.text() if mean else MISSING}** on corrupted ones, rPC {share} of '
        f'P; over {count} corruption{"s" * (count > 1)} at severity {severities} '
        '(arXiv 1907.07484).'
    )
    if not found['benchmark']:
        text += (
            f' Published figures are over {len(BENCHMARK)} corruptions at '
            f'{len(SEVERITIES)} severities, so that these are not to be compared with '
            'them.'
        )
    return text


def _groups(headline: Headline, passes: Sequence[AttackResult]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    before = headline.benign.value if headline.benign else None
    for group in GROUPS:
        own = [a for a in passes if GROUP_OF[a.settings['corruption']] == group]
        means = _means(before, [(a, _value(headline.of(a))) for a in own])
        if means['mPC'] is None:
            continue
        value, worst = min(
            ((each.value, a) for a in own if (each := headline.of(a))),
            key=lambda pair: pair[0],
        )
        settings = worst.settings
        found[group] = {
            'mean': means['mPC'],
            'relative': means['rPC'],
            'worst': {
                **{key: settings[key] for key in ('corruption', 'severity')},
                'value': value,
            },
        }
    return found


def _means(
    before: float | None, figures: Sequence[tuple[AttackResult, Any]]
) -> dict[str, float | None]:
    """Returns P, mPC (the mean over corruptions of that over severities) and rPC."""
    values: dict[str, list[float]] = {}
    for attack, value in figures:
        if is_number(value):
            values.setdefault(attack.settings['corruption'], []).append(float(value))
    means = [sum(each) / len(each) for each in values.values()]
    mean = sum(means) / len(means) if means else None
    share = mean / before if mean is not None and before else None
    return {'P': before, 'mPC': mean, 'rPC': share}


def _by_attack(attacks: Sequence[AttackResult]) -> dict[str, list[AttackResult]]:
    """Groups passes on corrupted pictures by what is made on them; '' for nothing."""
    groups: dict[str, list[AttackResult]] = {}
    labels: dict[str, str] = {}
    for attack in attacks:
        name = attack.settings.get('corruption')
        if name is None:
            continue
        same = ('corruption', 'severity')
        settings = {k: v for k, v in attack.settings.items() if k not in same}
        key = json.dumps(settings, sort_keys=True, default=str)
        if settings.get('norm') is None:
            labels.setdefault(key, '')
        mark = rf'[-_. ]*{name}([-_. ]*severity)?[-_. ]*\d*'
        label = re.sub(mark, '', attack.name) or attack.name
        groups.setdefault(labels.setdefault(key, label), []).append(attack)
    return groups


def _is_benchmark(passes: Sequence[AttackResult]) -> bool:
    there = {(a.settings['corruption'], a.settings['severity']) for a in passes}
    return there == {(name, each) for name in BENCHMARK for each in SEVERITIES}


def _in_order(names: set[str]) -> list[str]:
    return [name for name in NAMES if name in names]


def _value(figure: Figure | None) -> float | None:
    return figure.value if figure else None


def _percent(share: Any) -> str:
    return f'{100 * share:.1f} %' if is_number(share) else MISSING
