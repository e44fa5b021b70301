"""The parts of a report that are about boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from .document import Part, Section, Table, interval, number

# Name and analysis of each pass, the benign one first: see
# :class:`mmrobust.evaluation.box_analysis.BoxAnalysis`.
Passes: TypeAlias = Sequence[tuple[str, 'dict[str, Any] | None']]

# What became of objects, and false detections.
OBJECTS = ('objects_found', 'objects_misclassified', 'objects_mislocalised', 'missed')
COUNTED = (*OBJECTS, 'hallucinated', 'duplicate')
# Of attacks, in the table of classes.
MOST_COLUMNS = 8
SIZES = ('small', 'medium', 'large')


def boxes_section(passes: Passes, worst: dict[str, Any] | None) -> Section | None:
    """Intervals of mAP, counts of errors, and the worst case over the passes."""
    analysed = [(name, boxes) for name, boxes in passes if boxes]
    if not analysed:
        return None
    thr = analysed[0][1]['errors']['score_thr']
    rows = [
        [
            name,
            interval(boxes['mAP']),
            interval(boxes.get('drop')),
            *(str(boxes['errors'][key]) for key in COUNTED),
        ]
        for name, boxes in analysed
    ]
    parts: list[Part] = [
        'COCO box mAP and its fall, with 95 % bootstrap intervals over images; '
        f'objects and false detections at scores from {thr:g}.',
        Table(['attack', 'mAP', 'fall', *map(label, COUNTED)], rows),
    ]
    if worst:
        parts.append(worst_sentence(worst))
    return Section('boxes', 'Boxes', parts)


def label(count: str) -> str:
    """How a count is called in tables."""
    return count.removeprefix('objects_')


def worst_sentence(worst: dict[str, Any]) -> str:
    """The worst case in one sentence."""
    chosen = ', '.join(
        f'{name} {count}' for name, count in worst['images'].items() if count
    )
    return (
        'Worst case, the lowest mAP found by choosing a pass for every image: '
        f'**{worst["mAP"]:.3f}** ({chosen} images). It falls with every pass '
        'that takes part: compare models under the same attacks.'
    )


def sizes_section(passes: Passes) -> Section | None:
    """MAP of small, medium and large objects."""
    rows = [
        [name, *(number(boxes['sizes'].get(size)) for size in SIZES)]
        for name, boxes in passes
        if boxes and boxes.get('sizes')
    ]
    if not rows:
        return None
    return Section(
        'sizes',
        'By size of the objects',
        [
            'mAP of objects of an area below 32 x 32 pixels, up to 96 x 96, and '
            'above, as COCO divides them.',
            Table(['attack', *SIZES], rows),
        ],
    )


def classes_section(passes: Passes) -> Section | None:
    """MAP of each class, those that fall most first.

    A table of many attacks cannot be read; it has the lowest then.
    """
    given = [(boxes or {}).get('classes') for _, boxes in passes]
    if not any(given):
        return None
    benign: dict[str, Any] = given[0] or {}
    attacks = [
        (boxes['mAP']['estimate'], name, classes)
        for (name, boxes), classes in zip(passes[1:], given[1:], strict=True)
        if boxes and classes
    ]
    lowest = {id(each[2]) for each in sorted(attacks, key=_order)[:MOST_COLUMNS]}
    shown = [each for each in attacks if id(each[2]) in lowest]
    rows = []
    for name in next(filter(None, given)):
        values = [classes.get(name) for _, _, classes in attacks]
        known = [value for value in values if value is not None]
        before = benign.get(name)
        fall = before - min(known) if known and before is not None else -math.inf
        figures = [classes.get(name) for _, _, classes in shown]
        rows.append((fall, [name, *map(number, [before, fall, *figures])]))
    rows.sort(key=lambda row: -row[0])  # stable: ties stay in the dataset's order
    text = 'mAP of each class, those that fall most under any attack first'
    if len(shown) < len(attacks):
        text += f', with the {len(shown)} lowest attacks; all are in the JSON file'
    head = ['class', passes[0][0], 'largest fall', *(name for _, name, _ in shown)]
    return Section(
        'classes', 'By class', [f'{text}.', Table(head, [row for _, row in rows])]
    )


def _order(attack: tuple[float, str, Any]) -> float:
    return attack[0] if math.isfinite(attack[0]) else math.inf
