"""What the report says, in sections that the Markdown and the page share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .boxes import Passes, boxes_section, sizes_section
from .curves import Curve, by_axis, find_curves
from .document import MISSING, Section, Table, number
from .figures import BENIGN_LABEL, Headline, shown_metrics
from .result import AttackResult

if TYPE_CHECKING:
    from .robustness import RobustnessReport

_SPACES = {
    'input': 'on the network input',
    'original': "on the pixels of the dataset's pictures, before they are resized",
}


def figures_table(report: RobustnessReport) -> Table:
    """The metrics, one row per attack."""
    shown = shown_metrics(report.benign)
    rows = [[BENIGN_LABEL, '', '', '', '', *_numbers(report.benign, shown)]]
    for attack in report.attacks:
        settings = attack.settings
        steps = str(settings.get('num_steps', ''))
        if settings.get('restarts', 1) > 1:
            steps += f' x {settings["restarts"]}'
        rows.append(
            [
                attack.name,
                str(settings.get('norm')),
                f'{settings.get("eps", 0):g}',
                steps,
                str(settings.get('objective') or 'none'),
                *_numbers(attack.metrics, shown),
            ]
        )
    names = [key.split('/')[-1] for key in shown]
    return Table(['attack', 'norm', 'eps', 'steps', 'objective', *names], rows, texts=5)


def unit_sentence(space: str) -> str:
    """What eps means."""
    return f'eps in pixel units of 0-255, {_SPACES.get(space, space)}.'


def sections(report: RobustnessReport) -> list[Section]:
    """Everything after the table, in the order of the Markdown."""
    passes = all_passes(report)
    found = [
        curves_section(report),
        *(_members_section(a.name, a.members) for a in report.attacks if a.members),
        boxes_section(passes, report.worst_case),
        sizes_section(passes),
        _pictures_section(report),
        *report.more(),
        checks_section(report),
        _gradients_section(report.attacks),
        _cost_section(report.attacks),
        _repeat_section(report),
    ]
    return [section for section in found if section]


def all_passes(report: RobustnessReport) -> Passes:
    """The analysed boxes of all passes."""
    attacks = [(attack.name, attack.boxes) for attack in report.attacks]
    return [(BENIGN_LABEL, report.benign_boxes), *attacks]


def checks_section(report: RobustnessReport) -> Section:
    """All warnings, or the sentence that there are none."""
    warnings = [*report.checks] + [
        f'{attack.name}: {text}' for attack in report.attacks for text in attack.checks
    ]
    return Section('checks', 'Checks', [warnings or 'No warnings.'])


def curves_section(report: RobustnessReport) -> Section | None:
    """A table for each axis, with a column for each curve."""
    headline = Headline.of(report)
    tables = [
        _curves_table(report, headline, group)
        for group in by_axis(find_curves(report.attacks))
    ]
    if not tables:
        return None
    text = f'{headline.name} of the attacks that differ in one number only.'
    return Section('curves', 'Curves', [text, *tables])


def _curves_table(
    report: RobustnessReport, headline: Headline, curves: Sequence[Curve]
) -> Table:
    """The points of curves; without an attack there is no eps and no step."""
    benign = headline.text(report.benign, report.benign_boxes)
    columns = [
        {
            value: headline.text(attack.metrics, attack.boxes)
            for value, attack in curve.points
        }
        for curve in curves
    ]
    rows = [['0 (benign)'] + [benign] * len(curves)]
    for value in sorted({value for column in columns for value in column}):
        rows.append([f'{value:g}', *(column.get(value, '') for column in columns)])
    first = curves[0]
    axis = f'eps ({first.norm})' if first.axis == 'eps' else first.axis
    return Table([axis, *(curve.label for curve in curves)], rows)


def _members_section(name: str, members: Sequence[Mapping[str, Any]]) -> Section:
    rows = []
    for member in members:
        settings = member.get('settings') or {}
        rows.append(
            [
                str(member['name']),
                str(settings.get('num_steps', '')),
                str(member['images']),
                str(member['chosen']),
                number(member['mAP']),
                str(member['forwards']),
                str(member['backwards']),
                number(member['seconds'], 1),
            ]
        )
    head = ['member', 'steps', 'images', 'chosen on', 'mAP after it']
    head += ['forwards', 'backwards', 'seconds']
    return Section(
        f'members-{name}',
        f'Members of {name}',
        [
            'In their order: on how many images each ran, on how many its example is '
            'the one that counts, and the lowest mAP found so far (by a short search: '
            'the last one may find less).',
            Table(head, rows, texts=1),
        ],
    )


def _pictures_section(report: RobustnessReport) -> Section | None:
    """The same attacked images as pictures of 8 bits."""
    headline = Headline.of(report)
    rows = []
    for attack in report.attacks:
        stored = attack.quantized
        if not stored:
            continue
        # Like with like: the evaluator's mAP is not quite the analysis's.
        both = attack.boxes and stored.get('boxes')
        before = headline.read(attack.metrics, attack.boxes if both else None)
        after = headline.read(stored['metrics'], stored['boxes'] if both else None)
        gap = before.value - after.value if before and after else None
        rows.append(
            [
                attack.name,
                number(before and before.value),
                number(after and after.value),
                number(gap, signed=True),
                number(stored.get('radius'), 2),
            ]
        )
    if not rows:
        return None
    head = ['attack', f'{headline.name} as computed', f'{headline.name} as a picture']
    return Section(
        'pictures',
        'As pictures',
        [
            'The attacked images rounded to 8 bits, stored as pictures and scored '
            'through the unchanged pipeline. A gap far from 0 means that the attack '
            'does not survive being a picture; below 0 it is weaker as one.',
            Table([*head, 'gap', 'largest perturbation'], rows),
        ],
    )


def _gradients_section(attacks: Sequence[AttackResult]) -> Section | None:
    """What was seen of the gradients, as far as it is numbers."""
    watched = [(attack.name, attack.watched) for attack in attacks if attack.watched]
    names = list(
        dict.fromkeys(
            key
            for _, values in watched
            for key, value in values.items()
            if isinstance(value, (int, float))
        )
    )
    if not names:
        return None
    rows = [[name, *(_short(v.get(key)) for key in names)] for name, v in watched]
    head = ['attack', *(name.replace('_', ' ') for name in names)]
    return Section('gradients', 'Gradients', [Table(head, rows)])


def _cost_section(attacks: Sequence[AttackResult]) -> Section:
    counts = ['forwards', 'backwards']
    if any(attack.queries for attack in attacks):
        counts.append('queries')
    rows = []
    for attack in attacks:
        row = [attack.name, str(attack.images or MISSING)]
        row += [str(getattr(attack, count)) for count in counts]
        row.append(f'{attack.seconds:.1f}')
        each = attack.per_image() or {}
        row += [_short(each.get(count)) for count in [*counts, 'seconds']]
        rows.append(row)
    head = ['attack', 'images', *counts, 'seconds']
    head += [f'{count} per image' for count in [*counts, 'seconds']]
    return Section('cost', 'Cost', [Table(head, rows)])


def _repeat_section(report: RobustnessReport) -> Section:
    facts = {
        'config': report.config,
        'checkpoint': report.checkpoint,
        'sha256': report.checkpoint_sha256,
        'seed': report.seed,
        'dataset': dataset_text(report.dataset),
        'versions': ', '.join(f'{k} {v}' for k, v in report.versions.items()),
        **report.environment,
    }
    facts['command'] = shlex.join(report.environment.get('command', ()))
    texts = [f'{key}: {value}' for key, value in facts.items()]
    return Section('repeat', 'How to repeat it', [texts])


def dataset_text(dataset: Mapping[str, Any]) -> str:
    """The dataset by what it has: a folder of classes has no annotation file."""
    keys = ('ann_file', 'data_root', 'type')
    name = next((dataset[key] for key in keys if dataset.get(key)), '')
    return f'{name}, {dataset["num_images"]} images'


def _numbers(metrics: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [number(metrics.get(key)) for key in keys]


def _short(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, (int, float)) else MISSING
