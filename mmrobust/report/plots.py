"""Pictures of curves, drawn by matplotlib as SVG for the page.

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

from .curves import Curve, by_axis
from .figures import Figure, Headline

# Okabe and Ito's colours, which are told apart with any kind of colour vision; those
# that neither white nor black paper swallows.
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P')
_STYLES = ('-', '--', '-.', ':', '-', '--')
# More lines on one picture cannot be told apart.
MOST = len(_COLOURS)

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


def curve_pictures(
    curves: Sequence[Curve], headline: Headline, benign: Figure | None
) -> list[tuple[str, str]]:
    """Draws curves of one axis together.

    Args:
        curves: see :func:`mmrobust.report.curves.find_curves`.
        headline: which figure is drawn.
        benign: the figure without attack, the point at eps 0.

    Returns:
        A description and an ``<svg>`` element for each picture.
    """
    pictures: list[tuple[str, str]] = []
    for group in by_axis(curves):
        axis, norm = group[0].axis, group[0].norm
        for start in range(0, len(group), MOST):
            part = group[start : start + MOST]
            unit = f'eps ({norm}, pixel units of 0-255)' if axis == 'eps' else axis
            labels = '; '.join(curve.label for curve in part)
            svg = _draw(part, headline, benign, unit, f'p{len(pictures)}')
            pictures.append((f'{headline.name} against {axis}: {labels}', svg))
    return pictures


def _draw(
    curves: Sequence[Curve],
    headline: Headline,
    benign: Figure | None,
    unit: str,
    prefix: str,
) -> str:
    with rc_context(_SETTINGS):
        canvas = Canvas(figsize=(5.6, 3.6), layout='constrained')
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        values: set[float] = set()
        along_eps = curves[0].axis == 'eps'
        for index, curve in enumerate(curves):
            points = [
                (value, headline.read(attack.metrics, attack.boxes))
                for value, attack in curve.points
            ]
            if along_eps:
                points.insert(0, (0.0, benign))
            found = [(value, figure) for value, figure in points if figure]
            values.update(value for value, _ in found)
            _line(axes, index, curve.label, found)
        if benign and not along_eps:
            axes.axhline(benign.value, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                'benign',
                (1, benign.value),
                xycoords=('axes fraction', 'data'),
                xytext=(0, 3),
                textcoords='offset points',
                ha='right',
            )
        _axis(axes, sorted(values), along_eps)
        axes.set_xlabel(unit)
        axes.set_ylabel(headline.name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.18)
        axes.legend(frameon=False)
        text = io.StringIO()
        canvas.savefig(text, format='svg', transparent=True, metadata={'Date': None})
    return _inline(text.getvalue(), prefix)


def _line(
    axes: Axes, index: int, label: str, points: Sequence[tuple[float, Figure]]
) -> None:
    colour = _COLOURS[index]
    places = [value for value, _ in points]
    axes.plot(
        places,
        [figure.value for _, figure in points],
        color=colour,
        marker=_MARKERS[index],
        markersize=5,
        linestyle=_STYLES[index],
        label=label.replace('$', r'\$'),  # not mathematics
    )
    if all(figure.low is not None for _, figure in points):
        low = [figure.low or 0.0 for _, figure in points]
        high = [figure.high or 0.0 for _, figure in points]
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _axis(axes: Axes, values: Sequence[float], along_eps: bool) -> None:
    # Steps and queries grow by factors.
    positive = [value for value in values if value > 0]
    if not along_eps and positive and positive[-1] > 8 * positive[0]:
        axes.set_xscale('log')
    if len(values) <= 9:
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f'{value:g}' for value in values])


def _inline(svg: str, prefix: str) -> str:
    """An element that can stand in a page beside others of its kind."""
    svg = svg[svg.index('<svg') :]
    # Its styles would be those of the whole page, and so are its ids.
    for name in ('metadata', 'style'):
        svg = re.sub(rf'<{name}\b.*?</{name}>\s*', '', svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)
    # Sized by the page; the view box keeps the proportions.
    svg = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1>', svg)
    return svg.replace('xlink:href', 'href').replace(_INK, 'currentColor')
