"""The picture of a study: eps against the figure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .plan import MODES, number

# Told apart in print without colour, too.
_STYLES = {'fixed': ('o', '--'), 'full': ('s', '-')}


def figure(
    rows: Sequence[Mapping[str, Any]], metric: str, norm: str, num_seeds: int
) -> Figure:
    """One line per mode with error bars over the seeds.

    The eps axis is linear between 0 and the smallest other eps and logarithmic above,
    so that the standard backbone (eps 0) is on it.

    Args:
        rows: see :func:`mmrobust.studies.backbone_transfer.summarize`.
        metric: name of the figure.
        norm: norm of the pre-training's eps.
        num_seeds: seeds of the study.
    """
    drawn = Figure(figsize=(6.0, 4.0), layout='constrained')
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    for mode in MODES:
        points = [r for r in rows if r['mode'] == mode and r['mean'] is not None]
        if points:
            marker, line = _STYLES[mode]
            axes.errorbar(
                [row['eps'] for row in points],
                [row['mean'] for row in points],
                yerr=[row['std'] or 0.0 for row in points] if num_seeds > 1 else None,
                marker=marker,
                linestyle=line,
                capsize=3,
                label=mode,
            )
    ticks = sorted({row['eps'] for row in rows})
    positive = [eps for eps in ticks if eps > 0]
    if positive:
        axes.set_xscale('symlog', linthresh=positive[0], linscale=0.5)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([number(eps) for eps in ticks])
    axes.set_xlabel(f'eps of the pre-training ({norm})')
    axes.set_ylabel(metric)
    if num_seeds > 1:
        axes.set_title(f'mean and standard deviation of {num_seeds} seeds', fontsize=10)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return drawn


def draw(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    norm: str,
    path: Path,
    num_seeds: int,
) -> None:
    """Writes the picture as a PNG file, whole or not at all; see :func:`figure`."""
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.png')
    figure(rows, metric, norm, num_seeds).savefig(temporary, dpi=200)
    os.replace(temporary, path)
