"""Counts how often 95 % intervals hold the true mAP of simulated data sets.

    python experiments/intervals/coverage.py work_dirs/intervals.jsonl
    python experiments/intervals/coverage.py work_dirs/intervals.jsonl --table

One line of JSON per population and size is appended; those that are there are left
out. ``--table`` prints what the README has.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmrobust.analysis import worst_case_intervals, worst_case_map
from mmrobust.analysis.intervals import Jackknife
from mmrobust.report import markdown_table
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student
from simulated import DETECTORS, SPREADS, ManyWeights, Population

CONFIDENCE = 0.95
# Images, and data sets of so many.
SIZES = {10: 400, 20: 400, 50: 250, 200: 100}
# Of a search over this many attacks, images, data sets, and for the true value.
ATTACKS, SEARCHED, SEARCHES, LARGE = 3, (20, 50), 60, 2000

Ends = tuple[float, float]
TAILS = norm.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])


def percentile(estimate: float, drawn: np.ndarray, without: np.ndarray) -> Ends:
    """The middle share of the resamples."""
    return _quantiles(drawn, norm.cdf(TAILS))


def bca(estimate: float, drawn: np.ndarray, without: np.ndarray) -> Ends:
    """Bias-corrected and accelerated (Efron 1987; DiCiccio and Efron 1996)."""
    below = ((drawn < estimate).mean() + (drawn <= estimate).mean()) / 2
    least = 0.5 / len(drawn)
    shift = norm.ppf(np.clip(below, least, 1 - least))
    apart = without.mean() - without
    square = (apart**2).sum()
    acceleration = (apart**3).sum() / (6 * square**1.5) if square else 0.0
    moved = shift + TAILS
    return _quantiles(drawn, norm.cdf(shift + moved / (1 - acceleration * moved)))


def basic(estimate: float, drawn: np.ndarray, without: np.ndarray) -> Ends:
    """The percentile interval, mirrored at the estimate."""
    low, high = percentile(estimate, drawn, without)
    return 2 * estimate - high, 2 * estimate - low


def shifted(estimate: float, drawn: np.ndarray, without: np.ndarray) -> Ends:
    """The percentile interval, lowered by twice the bias of the resamples."""
    low, high = percentile(estimate, drawn, without)
    bias = float(drawn.mean() - estimate)
    return low - 2 * bias, high - 2 * bias


def bootstrap_logit(estimate: float, drawn: np.ndarray, without: np.ndarray) -> Ends:
    """Bias and variance of the resamples' logits, normal tails."""
    logits = logit(np.clip(drawn, 1e-4, 1 - 1e-4))
    start = float(logit(np.clip(estimate, 1e-4, 1 - 1e-4)))
    ends = 2 * start - logits.mean() + TAILS * logits.std()
    return float(expit(ends[0])), float(expit(ends[1]))


def jackknife_t(estimate: float, drawn: np.ndarray, without: np.ndarray) -> Ends:
    """Bias and variance of the jackknife, Student's t with n - 1 degrees."""
    count = len(without)
    bias = (count - 1) * (without.mean() - estimate)
    spread = np.sqrt((count - 1) * without.var())
    reach = student.ppf((1 + CONFIDENCE) / 2, count - 1) * spread
    return estimate - bias - reach, estimate - bias + reach


def jackknife_logit(estimate: float, drawn: np.ndarray, without: np.ndarray) -> Ends:
    """What mmrobust.analysis does, of mAP by COCO's levels."""
    return chosen(estimate, np.array([estimate, *without]))


def chosen(estimate: float, values: np.ndarray) -> Ends:
    """What mmrobust.analysis does."""
    count = len(values) - 1
    found = Jackknife(count, count, 0).around(estimate, values, CONFIDENCE)
    return found.low, found.high


CHOSEN = 'mmrobust'
METHODS: dict[str, Callable[[float, np.ndarray, np.ndarray], Ends]] = {
    'percentile': percentile,
    'BCa': bca,
    'basic': basic,
    'percentile - 2 bias': shifted,
    'bootstrap, logit': bootstrap_logit,
    'jackknife t': jackknife_t,
    'the same, logit': jackknife_logit,
}


def _quantiles(values: np.ndarray, levels: np.ndarray) -> Ends:
    low, high = np.quantile(values, levels)
    return float(low), float(high)


def cover(
    population: Population, num_images: int, data_sets: int, resamples: int, seed: int
) -> dict:
    """Draws data sets, and counts for every method."""
    rng = np.random.default_rng([seed, num_images])
    ends: dict[str, list[Ends]] = {name: [] for name in (*METHODS, CHOSEN)}
    estimates, above = [], []
    for _ in range(data_sets):
        (table,) = population.draw(rng, num_images)
        values = ManyWeights(table)
        # The data set itself, and it without each of its images.
        counts = 1 - np.eye(num_images + 1, num_images, -1, dtype=int)
        estimate, *without = values(counts)
        even = np.full(num_images, 1 / num_images)
        drawn = values(rng.multinomial(num_images, even, resamples))
        drawn = drawn[~np.isnan(drawn)]
        if np.isnan(estimate) or np.isnan(without).any():
            continue  # all objects are in one image
        for name, method in METHODS.items():
            ends[name].append(method(estimate, drawn, np.array(without)))
        ends[CHOSEN].append(chosen(estimate, values(counts, levels=False)))
        estimates.append(estimate)
        above.append(float((drawn > estimate).mean()))
    true = population.true_map
    return {
        'true': true,
        'mean_estimate': float(np.mean(estimates)),
        'resamples_above': float(np.mean(above)),
        'data_sets': len(estimates),
        'methods': {name: _counts(each, true) for name, each in ends.items()},
    }


def cover_worst_case(
    population: Population, num_images: int, data_sets: int, seed: int
) -> dict:
    """Counts for the worst case over attacks; the true one is that of many images."""
    rng = np.random.default_rng([seed, num_images, 1])
    large = population.draw(np.random.default_rng(98), LARGE, ATTACKS)
    found = worst_case_map(large, max_rounds=3)
    true = {'worst case': found.mean_ap, 'fall': found.single[0] - found.mean_ap}
    ends: dict[str, list[Ends]] = {name: [] for name in true}
    estimates = []
    for _ in range(data_sets):
        tables = population.draw(rng, num_images, ATTACKS)
        worst = worst_case_map(tables, max_rounds=3)
        intervals = worst_case_intervals(tables, worst.assignment)
        for name, interval in zip(true, intervals, strict=True):
            ends[name].append((interval.low, interval.high))
        estimates.append(worst.mean_ap)
    return {
        'true': true['worst case'],
        'mean_estimate': float(np.mean(estimates)),
        'data_sets': data_sets,
        'methods': {name: _counts(ends[name], true[name]) for name in true},
    }


def _counts(ends: Sequence[Ends], true: float) -> dict[str, float]:
    low, high = np.array(ends).T
    return {
        'covered': float(((low <= true) & (true <= high)).mean()),
        'above': float((low > true).mean()),
        'below': float((high < true).mean()),
        'width': float(np.median(high - low)),
    }


def _table(rows: Sequence[dict]) -> str:
    found = []
    for row in rows:
        cells = [
            f'{each["covered"]:.3f} ({each["below"]:.2f}, {each["above"]:.2f})'
            for each in row['methods'].values()
        ]
        first = [str(row['images']), row['spread'], f'{row["true"]:.3f}']
        found.append([*first, f'{row["mean_estimate"]:.3f}', *cells])
    head = ['images', 'classes', 'true mAP', 'mean estimate']
    return markdown_table([*head, *(rows[0]['methods'] if rows else ())], found)


def main() -> None:
    """Runs what is not in the file yet, or prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', type=Path)
    parser.add_argument('--resamples', type=int, default=200, help='of a bootstrap')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--table', action='store_true', help='print, and run nothing')
    args = parser.parse_args()
    text = args.file.read_text() if args.file.exists() else ''
    rows = [json.loads(line) for line in text.splitlines()]
    if args.table:
        for kind in ('mAP', 'worst case'):
            print(f'{kind}\n\n{_table([r for r in rows if r["kind"] == kind])}\n')
        return
    known = {(r['kind'], r['images'], r['spread'], r['strength']) for r in rows}
    jobs = [
        (kind, images, spread, strength)
        for kind, sizes in (('mAP', SIZES), ('worst case', SEARCHED))
        for images in sizes
        for strength in DETECTORS
        for spread in SPREADS
        if kind == 'mAP' or (spread == 'even' and strength in ('0.2', '0.75'))
    ]
    args.file.parent.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if job in known:
            continue
        kind, images, spread, strength = job
        population, started = Population(spread, strength), time.monotonic()
        if kind == 'mAP':
            found = cover(population, images, SIZES[images], args.resamples, args.seed)
        else:
            found = cover_worst_case(population, images, SEARCHES, args.seed)
        names = dict(zip(('kind', 'images', 'spread', 'strength'), job, strict=True))
        row = {**names, **found, 'seconds': round(time.monotonic() - started, 1)}
        with args.file.open('a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')
        print(json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
