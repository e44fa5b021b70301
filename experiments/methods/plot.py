"""Draws the records of a study: mean and standard deviation over seeds, row by row.

python experiments/methods/plot.py records.json out.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

# What is drawn of the passes there are, with the mark of each.
MARKS = {
    'benign': 'o',
    'patch': '^',
    'pgd': 'D',
    'ensemble': 's',
    'ensemble-1': 'v',
    'ensemble-2': '<',
    'ensemble-4': 's',
    'ensemble-8': '>',
}


def draw(rows: list[dict[str, Any]], metric: str = 'bbox_mAP') -> Figure:
    """One line per training, from records with ``metrics`` and a name or method."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.get('name') or row['method'], []).append(row['metrics'])
    passes = [name for name in MARKS if all(name in row['metrics'] for row in rows)]
    figure = Figure(figsize=(8, 0.5 * len(groups) + 1.6), layout='constrained')
    axes = figure.subplots()
    for shift, name in enumerate(passes):
        values = [[100 * each[name][metric] for each in g] for g in groups.values()]
        axes.errorbar(
            [mean(each) for each in values],
            [place + 0.12 * (shift - len(passes) / 2) for place in range(len(groups))],
            xerr=[stdev(each) if each[1:] else 0 for each in values],
            fmt=MARKS[name],
            label=name,
        )
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlim(left=-1)
    axes.set_xlabel('box mAP (%), mean and standard deviation over seeds')
    axes.grid(axis='x', alpha=0.4)
    figure.legend(loc='outside upper right', ncols=4)
    return figure


def main() -> None:
    """Draws a file."""
    records = json.loads(Path(sys.argv[1]).read_text())
    rows = list(records.values()) if isinstance(records, dict) else records
    draw(rows).savefig(sys.argv[2], dpi=110)


if __name__ == '__main__':
    main()
