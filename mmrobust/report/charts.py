"""Bars made of boxes of the page itself: they print, scale and need no picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .boxes import OBJECTS, Passes, label
from .elements import Raw, join, tag
from .figures import Bar, scale_of


def bar_chart(bars: Sequence[Bar], digits: int, title: str) -> Raw:
    """Horizontal bars with their intervals and figures.

    Args:
        bars: from top to bottom.
        digits: decimals of the figures.
        title: what is drawn, for people and programs that read the page aloud.
    """
    scale = scale_of(bars)
    rows = []
    for bar in bars:
        value, low, high = bar.figure.value, bar.figure.low, bar.figure.high
        text = f'{value:.{digits}f}'
        track = [tag('span', '', class_=f'bar {bar.kind}', style=_width(value / scale))]
        if low is not None and high is not None:
            text += f' [{low:.{digits}f}, {high:.{digits}f}]'
            style = f'left:{100 * low / scale:.2f}%;{_width((high - low) / scale)}'
            track.append(tag('span', '', class_='whisker', style=style))
        rows += [
            tag('dt', bar.label),
            tag(
                'dd',
                join(
                    tag('span', join(*track), class_='track'),
                    tag('span', text, class_='value'),
                ),
            ),
        ]
    caption = tag('figcaption', title)
    return tag('figure', join(caption, tag('dl', join(*rows), class_='bars')))


def error_chart(passes: Passes) -> Raw:
    """What became of the objects, a bar of parts for each pass."""
    rows = []
    for name, boxes in passes:
        if not boxes:
            continue
        counts = [int(boxes['errors'][key]) for key in OBJECTS]
        total = sum(counts) or 1
        parts = [
            tag(
                'span',
                '',
                class_=f'part part{index}',
                style=_width(count / total),
                title=f'{label(key)}: {count}',
            )
            for index, (key, count) in enumerate(zip(OBJECTS, counts, strict=True))
            if count
        ]
        rows += [
            tag('dt', name),
            tag('dd', tag('span', join(*parts), class_='track parts')),
        ]
    key = []
    for index, each in enumerate(OBJECTS):
        swatch = tag('span', '', class_=f'swatch part{index}')
        key.append(tag('span', join(swatch, ' ', label(each)), class_='key'))
    caption = tag('figcaption', Raw(' '.join(['What became of the objects:', *key])))
    return tag('figure', join(caption, tag('dl', join(*rows), class_='bars')))


def _width(share: Any) -> str:
    return f'width:{100 * min(max(float(share), 0.0), 1.0):.2f}%'
