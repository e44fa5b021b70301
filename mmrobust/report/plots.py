"""Draws curves by matplotlib as SVG elements for the page.

Text stays text and takes the page's colour, so that the pictures can be read in light
and dark and printed; lines differ in markers, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, NullLocator

from .document import Figure, Lines

# Okabe and Ito's colours, which are told apart with any kind of colour vision; those
# that neither white nor black paper swallows. As many as lines in a picture.
_LOOKS = (
    *(('#0072b2', 'o', '-'), ('#d55e00', 's', '--'), ('#009e73', '^', '-.')),
    *(('#cc79a7', 'D', ':'), ('#e69f00', 'v', '-'), ('#56b4e9', 'P', '--')),
)

# Stands for the page's own colour of text until the picture is there.
_INK = '#010203'
_SETTINGS: Any = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mmrobust',  # the same report gives the same file
    'font.family': 'sans-serif',
    'font.size': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    **dict.fromkeys(
        (
            *('text.color', 'axes.edgecolor', 'axes.labelcolor'),
            *('xtick.color', 'ytick.color', 'grid.color'),
        ),
        _INK,
    ),
}


def draw(picture: Lines, prefix: str) -> str:
    """Returns an ``<svg>`` element.

    Args:
        picture: what is drawn.
        prefix: of the ids in the element, which have to be unique in the page.
    """
    with rc_context(_SETTINGS):
        canvas = Canvas(figsize=(5.6, 3.6), layout='constrained')
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        for look, (label, points) in zip(_LOOKS, picture.lines, strict=False):
            _line(axes, look, label, points)
        if picture.level:
            height = picture.level.value
            axes.axhline(height, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
            at: Any = {'xycoords': ('axes fraction', 'data'), 'ha': 'right'}
            above: Any = {'xytext': (0, 3), 'textcoords': 'offset points'}
            axes.annotate('benign', (1, height), **at, **above)
        values = {value for _, points in picture.lines for value, _ in points}
        _axis(axes, sorted(values), picture.factors)
        axes.set(xlabel=picture.unit, ylabel=picture.name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.18)
        axes.legend(frameon=False)
        text = io.StringIO()
        canvas.savefig(text, format='svg', transparent=True, metadata={'Date': None})
    return _inline(text.getvalue(), prefix)


def _line(
    axes: Axes,
    look: tuple[str, str, str],
    label: str,
    points: Sequence[tuple[float, Figure]],
) -> None:
    colour, marker, style = look
    places = [value for value, _ in points]
    axes.plot(
        places,
        [figure.value for _, figure in points],
        color=colour,
        marker=marker,
        markersize=5,
        linestyle=style,
        label=label.replace('$', r'\$'),  # not mathematics
    )
    if all(figure.low is not None for _, figure in points):
        low = [figure.low or 0.0 for _, figure in points]
        high = [figure.high or 0.0 for _, figure in points]
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _axis(axes: Axes, values: Sequence[float], factors: bool) -> None:
    positive = [value for value in values if value > 0]
    if factors and positive and positive[-1] > 8 * positive[0]:
        axes.set_xscale('log')
    if len(values) <= 9:
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f'{value:g}' for value in values])


def _inline(svg: str, prefix: str) -> str:
    """Makes an element that can stand in a page beside others of its kind."""
    svg = svg[svg.index('<svg') :]
    # Its styles would be those of the whole page, and so are its ids.
    for name in ('metadata', 'style'):
        svg = re.sub(rf'<{name}\b.*?</{name}>\s*', '', svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)
    # Sized by the page; the view box keeps the proportions.
    svg = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1>', svg)
    return svg.replace('xlink:href', 'href').replace(_INK, 'currentColor')
