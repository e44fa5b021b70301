"""Counts how often 95 % intervals hold the true VOC mAP of simulated data sets.

    python experiments/intervals/voc.py

The draws are those of the study on COCO's mAP, at the lowest IoU threshold alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mmrobust.analysis import FastAP, MatchTable, map_interval
from mmrobust.report import markdown_table
from simulated import DETECTORS, SPREADS, Population

SIZES, DATA_SETS = (20, 50), 150
MODES = {'11points': 11, 'area': 0}


def main() -> None:
    """Prints a row for each population, mode and size."""
    rows = []
    for spread in SPREADS:
        for strength in DETECTORS:
            population = Population(spread, strength)
            (whole,) = population.draw(np.random.default_rng(99), 100_000)
            for mode, points in MODES.items():
                true = FastAP(as_voc(whole, points)).mean()
                for size in SIZES:
                    held, below, above = covered(population, size, points, true)
                    cells = [str(size), spread, mode, f'{true:.3f}']
                    rows.append([*cells, f'{held:.3f} ({below:.2f}, {above:.2f})'])
                    print(rows[-1], flush=True)
    head = ['images', 'classes', 'eval_mode', 'true mAP', 'mmrobust']
    print(markdown_table(head, rows, 'rllrr'))


def covered(
    population: Population, size: int, points: int, true: float
) -> tuple[float, float, float]:
    """Returns shares: of intervals that hold the true mAP, lie below and above it."""
    draws = np.random.default_rng(7)
    ends = []
    for _ in range(DATA_SETS):
        (table,) = population.draw(draws, size)
        interval = map_interval(as_voc(table, points))
        ends.append((interval.low, interval.high))
    low, high = np.array(ends).T
    below, above = float((high < true).mean()), float((low > true).mean())
    return 1 - below - above, below, above


def as_voc(table: MatchTable, points: int) -> MatchTable:
    """Returns the table at its lowest threshold, with another number of levels."""
    return replace(table, hit=table.hit[:1], ignored=table.ignored[:1], points=points)


if __name__ == '__main__':
    main()
