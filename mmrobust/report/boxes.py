"""The parts of a report that are about boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from .document import Part, Section, Table, interval, number

# Name and analysis of each pass, the benign one first: see
# :class:`mmrobust.engine.box_analysis.BoxAnalysis`.
Passes: TypeAlias = Sequence[tuple[str, 'dict[str, Any] | None']]

# What became of objects, and false detections.
OBJECTS = ('objects_found', 'objects_misclassified', 'objects_mislocalised', 'missed')
COUNTED = (*OBJECTS, 'hallucinated', 'duplicate')
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
    """MAP of each class, those that fall most first."""
    given = [(name, (boxes or {}).get('classes')) for name, boxes in passes]
    found = [(name, classes) for name, classes in given if classes]
    if not found:
        return None
    benign = (passes[0][1] or {}).get('classes') or {}
    attacked = [values for _, values in found if values is not benign]
    rows = []
    for name in found[0][1]:
        before = benign.get(name)
        known = [each for each in (v.get(name) for v in attacked) if each is not None]
        fall = before - min(known) if known and before is not None else None
        cells = [name, *(number(values.get(name)) for _, values in found)]
        order = -math.inf if fall is None else fall
        rows.append((order, [*cells, number(fall)] if attacked else cells))
    rows.sort(key=lambda row: -row[0])  # stable: ties stay in the dataset's order
    head = ['class', *(name for name, _ in found)]
    return Section(
        'classes',
        'By class',
        [
            'mAP of each class; the largest fall under any attack on the right.'
            if attacked
            else 'mAP of each class.',
            Table(head + ['fall'] * bool(attacked), [row for _, row in rows]),
        ],
    )
