"""Plots of the study, with matplotlib's defaults."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from tables import (
    Store,
    benign,
    matrix_cells,
    metric,
    minutes,
    rows_of,
    worst,
)


def write_plots(records: Store, out: Path) -> None:
    """Writes a PNG per plot, of what has been run."""
    for name, draw in (
        ('detectors', draw_detectors),
        ('cost', draw_cost),
        ('matrix', draw_matrix),
        ('sweep', draw_sweep),
    ):
        figure = draw(records)
        if figure is not None:
            figure.savefig(out / f'{name}.png', dpi=120, bbox_inches='tight')
            plt.close(figure)


def bar(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; 0 of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if values[1:] else 0.0


def legend_above(axes: plt.Axes) -> None:
    """Puts the legend above the axes: within them it would hide what is drawn."""
    axes.legend(loc='lower right', bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def draw_detectors(records: Store) -> plt.Figure | None:
    """Benign and lowest attacked mAP of the detectors of claims 1, 2, 4, 6 and 9."""
    rows = []
    for claim in ('1', '2', '4', '6', '9'):
        for label, title in rows_of(records, claim):
            rows.append((f'{claim}: {label}', title))
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(8, 0.28 * len(rows) + 1))
    for shift, (name, value) in enumerate(
        (('benign', benign), ('lowest of four attacks', worst))
    ):
        points = [bar(records.values(title, value)) for _, title in rows]
        axes.errorbar(
            [mean for mean, _ in points],
            [index + 0.2 * shift for index in range(len(rows))],
            xerr=[deviation for _, deviation in points],
            fmt='os'[shift],
            label=name,
        )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel('box mAP (%), mean and standard deviation')
    axes.grid(axis='x', alpha=0.4)
    legend_above(axes)
    return figure


def draw_cost(records: Store) -> plt.Figure | None:
    """Lowest attacked mAP over the minutes of training (claim 3)."""
    rows = rows_of(records, '3')
    if not rows:
        return None
    figure, axes = plt.subplots()
    for method, title in (('free', 'FreeAT'), ('pgd', 'PGD-AT')):
        points = []
        for _, name in rows:
            times = records.values(name, minutes)
            if f'-robust-{method}' in name and times:
                figures = bar(records.values(name, worst))
                points.append((statistics.fmean(times), *figures))
        points.sort()
        if points:
            spent, means, deviations = zip(*points, strict=True)
            axes.errorbar(spent, means, yerr=deviations, marker='o', label=title)
    axes.set_xlabel('minutes of training')
    axes.set_ylabel('lowest attacked box mAP (%)')
    axes.grid(alpha=0.4)
    legend_above(axes)
    return figure


def draw_matrix(records: Store) -> plt.Figure | None:
    """The transfer matrix, mean over the seeds (claim 5)."""
    cells = matrix_cells(records)
    if not cells:
        return None
    sources, targets = list(cells), list(cells['clean'])
    means = [
        [statistics.fmean(values) for values in by_target.values()]
        for by_target in cells.values()
    ]
    figure, axes = plt.subplots()
    image = axes.imshow(means)
    axes.set_xticks(range(len(targets)), targets, rotation=30, ha='right')
    axes.set_yticks(range(len(sources)), sources)
    axes.set_xlabel('tested on')
    axes.set_ylabel('images of')
    low, high = image.get_clim()
    for i, row in enumerate(means):
        for j, value in enumerate(row):
            dark = value < (low + high) / 2
            color = 'white' if dark else 'black'
            axes.text(j, i, f'{value:.1f}', ha='center', va='center', color=color)
    figure.colorbar(image, label='box mAP (%)')
    return figure


def draw_sweep(records: Store) -> plt.Figure | None:
    """Accuracy on the second task over the eps of the first (claim 8)."""
    figure, axes = plt.subplots()
    drawn = False
    for mode in ('fixed', 'full'):
        for shift, side in enumerate((32, 8)):
            title = f'transfer/last-half-{side}px'
            if title not in records.by_title:
                continue
            record = next(iter(records.by_title[title].values()))
            radii = [key.split('/')[1] for key in record['metrics'] if mode in key]
            points = [bar(records.values(title, metric(f'{mode}/{r}'))) for r in radii]
            axes.errorbar(
                [index + 0.08 * shift for index in range(len(radii))],
                [mean for mean, _ in points],
                yerr=[deviation for _, deviation in points],
                marker='o',
                linestyle='-' if mode == 'full' else '--',
                label=f'{mode}, {side} pixels',
            )
            axes.set_xticks(range(len(radii)), radii)
            drawn = True
    axes.set_xlabel('eps of the pre-training (linf, of 255)')
    axes.set_ylabel('accuracy on the other classes (%)')
    axes.grid(alpha=0.4)
    legend_above(axes)
    return figure if drawn else None
