"""The part of a report's Markdown that is about boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# What became of objects, and false detections.
_COUNTED = (
    'objects_found',
    'objects_misclassified',
    'objects_mislocalised',
    'missed',
    'hallucinated',
    'duplicate',
)


def boxes_section(
    passes: Sequence[tuple[str, dict[str, Any] | None]], worst: dict[str, Any] | None
) -> list[str]:
    """Lines about the boxes of all passes.

    Args:
        passes: name and analysis of each pass, see
            :class:`mmrobust.engine.box_analysis.BoxAnalysis`.
        worst: the worst case over them, if there is one.
    """
    if not any(boxes for _, boxes in passes):
        return []
    thr = next(b for _, b in passes if b)['errors']['score_thr']
    lines = [
        '',
        '## Boxes',
        '',
        'COCO box mAP and its fall, with 95 % bootstrap intervals over images; '
        f'objects and false detections at scores from {thr:g}.',
        '',
        '| attack | mAP | fall | found | misclassified | mislocalised | missed '
        '| hallucinated | duplicate |',
        '| --- |' + ' ---: |' * 8,
    ]
    for name, boxes in passes:
        if boxes is None:
            continue
        errors = boxes['errors']
        cells = [name, _interval(boxes['mAP']), _interval(boxes.get('drop'))]
        cells += [str(errors[key]) for key in _COUNTED]
        lines.append('| ' + ' | '.join(cells) + ' |')
    if worst:
        chosen = ', '.join(
            f'{name} {count}' for name, count in worst['images'].items() if count
        )
        lines += [
            '',
            'Worst case, the lowest mAP found by choosing a pass for every image: '
            f'**{worst["mAP"]:.3f}** ({chosen} images). It falls with every pass '
            'that takes part: compare models under the same attacks.',
        ]
    return lines


def _interval(values: dict[str, Any] | None) -> str:
    """Like ``0.412 [0.38, 0.45]``."""
    if values is None or not math.isfinite(values['estimate']):
        return '-'
    return '{estimate:.3f} [{low:.3f}, {high:.3f}]'.format(**values)
