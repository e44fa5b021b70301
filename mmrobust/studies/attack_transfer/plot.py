"""The picture of a transfer matrix."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def figure(
    sources: Sequence[str],
    targets: Sequence[str],
    values: Mapping[tuple[str, str], tuple[float, float]],
    metric: str,
) -> Figure:
    """A heat map: dark where little is left of what the target finds unattacked.

    Args:
        sources: names of the rows.
        targets: names of the columns.
        values: the figure and its control, by source and target; may have gaps.
        metric: name of the figure.
    """
    size = (2.6 + 1.1 * len(targets), 1.6 + 0.8 * len(sources))
    drawn = Figure(figsize=size, layout='constrained')
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    shares = [
        [_share(values.get((source, target))) for target in targets]
        for source in sources
    ]
    image = axes.imshow(shares, vmin=0, vmax=1, cmap='viridis', aspect='auto')
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            if (source, target) in values:
                value, control = values[source, target]
                axes.text(
                    column,
                    row,
                    f'{value:.3f}\n({value - control:+.3f})',
                    ha='center',
                    va='center',
                    fontsize=9,
                    fontweight='bold' if source == target else 'normal',
                    color='black' if shares[row][column] > 0.55 else 'white',
                )
    axes.set_xticks(range(len(targets)), targets, rotation=20, ha='right')
    axes.set_yticks(range(len(sources)), sources)
    axes.set_xlabel('target')
    axes.set_ylabel('images made for')
    axes.set_title(f'{metric} (change from the control)', fontsize=10)
    drawn.colorbar(image, ax=axes, label='share of the control')
    return drawn


def draw(
    sources: Sequence[str],
    targets: Sequence[str],
    values: Mapping[tuple[str, str], tuple[float, float]],
    metric: str,
    path: Path,
) -> None:
    """Writes the picture as a PNG file, whole or not at all; see :func:`figure`."""
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.png')
    figure(sources, targets, values, metric).savefig(temporary, dpi=200)
    os.replace(temporary, path)


def _share(pair: tuple[float, float] | None) -> float:
    if pair is None or not pair[1] > 0:
        return math.nan
    return min(max(pair[0] / pair[1], 0.0), 1.0)
