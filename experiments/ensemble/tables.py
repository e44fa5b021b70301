"""Selects an ensemble's members from what select_members.py kept, and prints why.

    python experiments/ensemble/tables.py work_dirs/members

Two measures of a set of attacks on a detector, both as a share of the value without
attack, so that detectors can be averaged, and both lower for a stronger set:

- mAP: of the worst combination of attacks over images (worst_case_map);
- score: the mean over images of the lowest image score. It is finer than mAP, which
  has few objects to rank here, and every image counts by itself.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from mmrobust import cli
from mmrobust.analysis import (
    MatchTable,
    broken,
    combine,
    image_scores,
    match_detections,
    mean_ap,
    worst_case_map,
)
from mmrobust.report import markdown_table

BENIGN = 'benign'
_ROUNDS = 3


@dataclass
class Detector:
    """All candidates on one detector.

    Attributes:
        name: of the folder.
        tables: matches by candidate, the benign pass among them.
        passes: forward and backward passes per image by candidate, a pair of them as
            one; a forward pass alone counts a third.
    """

    name: str
    tables: dict[str, MatchTable]
    passes: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> Detector:
        """Reads all candidates that the detector has."""
        truths, classes = _unpickle(folder / 'truth.pkl')
        tables: dict[str, MatchTable] = {}
        passes: dict[str, float] = {}
        for path in sorted(folder.glob('*.pkl')):
            kept = None if path.stem == 'truth' else _unpickle(path)
            if kept is None:
                continue
            tables[path.stem] = match_detections(truths, kept['found'], classes)
            backwards = kept['backwards']
            both = backwards + (kept['forwards'] - backwards) / 3
            passes[path.stem] = both / len(truths)
            if BENIGN not in tables:
                tables[BENIGN] = match_detections(truths, kept[BENIGN], classes)
        return cls(folder.name, tables, passes)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """(I,) image scores by candidate."""
        return {name: image_scores(table) for name, table in self.tables.items()}

    def score(self, members: Iterable[str], images: np.ndarray | None = None) -> float:
        """Mean lowest score as a share of the benign one; absent members are skipped.

        Args:
            members: names of candidates.
            images: which images, with repetition (a bootstrap sample); all by default.
        """
        chosen = [self.scores[m] for m in members if m in self.tables]
        lowest = np.min([self.scores[BENIGN], *chosen], axis=0)
        images = np.arange(len(lowest)) if images is None else images
        return float(lowest[images].mean() / self.scores[BENIGN][images].mean())

    def map(self, members: Iterable[str]) -> float:
        """Worst-case mAP as a share of the benign one."""
        return self._worst([self.tables[m] for m in members if m in self.tables])

    def _worst(self, tables: Sequence[MatchTable]) -> float:
        worst = worst_case_map([self.tables[BENIGN], *tables], max_rounds=_ROUNDS)
        return worst.mean_ap / mean_ap(self.tables[BENIGN])

    def skipping(
        self, members: Sequence[str], fraction: float
    ) -> tuple[float, float, float]:
        """The ensemble whose later members leave broken images alone.

        Returns:
            Its mAP and its score as shares of the benign ones, and its passes per
            image as a share of those without skipping.
        """
        members = [m for m in members if m in self.tables]
        benign, lowest = self.scores[BENIGN], self.scores[BENIGN]
        tables, spent = [], 0.0
        for member in members:
            tried = ~broken(lowest, benign, fraction)
            # An image that is not tried gives the member no choice but the benign one.
            pair = [self.tables[BENIGN], self.tables[member]]
            tables.append(combine(pair, tried.astype(int)))
            scores = np.where(tried, self.scores[member], benign)
            lowest = np.minimum(lowest, scores)
            spent += self.passes[member] * tried.mean()
        cost = spent / sum(self.passes[m] for m in members)
        return self._worst(tables), lowest.mean() / benign.mean(), cost


def forward_selection(
    detectors: Sequence[Detector],
    pool: Sequence[str],
    length: int,
    measure: str = 'map',
    start: Sequence[str] = (),
) -> list[tuple[str, float]]:
    """Adds, one by one, the candidate that lowers the measure most on average.

    Returns:
        Candidates in the order of choice, with the mean over detectors by then.
    """
    chosen, trace = list(start), []
    while len(trace) < length and set(pool) - set(chosen):
        values = {
            candidate: mean(
                getattr(d, measure)([*chosen, candidate]) for d in detectors
            )
            for candidate in pool
            if candidate not in chosen
        }
        best = min(values, key=lambda name: values[name])
        chosen.append(best)
        trace.append((best, values[best]))
    return trace


def best_subset(
    detectors: Sequence[Detector], pool: Sequence[str], size: int
) -> tuple[tuple[str, ...], float]:
    """The best set of this size by score, of all there are."""
    values = {
        members: mean(d.score(members) for d in detectors)
        for members in itertools.combinations(pool, size)
    }
    best = min(values, key=lambda members: values[members])
    return best, values[best]


def stability(
    detectors: Sequence[Detector], pool: Sequence[str], length: int, draws: int = 200
) -> dict[str, float]:
    """How often forward selection by score takes a candidate, over samples of images.

    Images and detectors are both drawn with repetition.
    """
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(pool, 0)
    for _ in range(draws):
        drawn = [
            detectors[i] for i in rng.integers(len(detectors), size=len(detectors))
        ]
        images = [
            rng.integers(d.tables[BENIGN].num_images, size=d.tables[BENIGN].num_images)
            for d in drawn
        ]
        chosen: list[str] = []
        while len(chosen) < length:
            values = {
                c: mean(
                    d.score([*chosen, c], own)
                    for d, own in zip(drawn, images, strict=True)
                )
                for c in pool
                if c not in chosen
            }
            chosen.append(min(values, key=lambda name: values[name]))
        for name in chosen:
            counts[name] += 1
    return {name: count / draws for name, count in counts.items()}


def mean(values: Iterable[float]) -> float:
    """The mean."""
    return float(np.mean(list(values)))


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers get three digits."""
    cells = [[f'{c:.3f}' if isinstance(c, float) else c for c in row] for row in rows]
    return markdown_table(header, cells) + '\n'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help="select_members.py's work dir")
    parser.add_argument('--eps', default='8', help='the radius of its folders')
    parser.add_argument('--steps', default='20', help='steps of the pool')
    parser.add_argument('--length', type=int, default=8)
    parser.add_argument('--standard', nargs='*', default=[], help='an ordered set')
    parser.add_argument('--fast', nargs='*', default=[], help='an ordered set')
    parser.add_argument(
        '--sets',
        nargs='*',
        default=[],
        metavar='A+B',
        help='sets to compare, where a detector has all of their members',
    )
    return parser.parse_args()


def main() -> None:
    """Prints all tables."""
    args = parse_args()
    folders = sorted(Path(args.work_dir).glob(f'*_eps{args.eps}'))
    detectors = [d for d in map(Detector.read, folders) if d.tables]
    present = sorted({name for d in detectors for name in d.tables} - {BENIGN})
    pool = [name for name in present if name.endswith(f'-{args.steps}')]
    print_single(detectors, present)
    print_selection(detectors, pool, args.length)
    for label, members in (('standard', args.standard), ('fast', args.fast)):
        if members:
            print_set(detectors, label, members)
    print_comparison(detectors, [each.split('+') for each in args.sets])


def print_single(detectors: Sequence[Detector], names: Sequence[str]) -> None:
    """Every candidate alone."""
    for measure in ('map', 'score'):
        print(f'\n## Alone: {measure} as a share of the benign one\n')
        rows = []
        for name in names:
            values = [
                getattr(d, measure)([name]) if name in d.tables else '-'
                for d in detectors
            ]
            rows.append([name, *values, mean(v for v in values if v != '-')])
        everything = [getattr(d, measure)(names) for d in detectors]
        rows.append(['all together', *everything, mean(everything)])
        print(markdown(['candidate', *(d.name for d in detectors), 'mean'], rows))


def print_selection(
    detectors: Sequence[Detector], pool: Sequence[str], length: int
) -> None:
    """Forward selection on all detectors, and without each."""
    for measure in ('map', 'score'):
        print(f'\n## Forward selection by {measure}\n')
        trace = forward_selection(detectors, pool, length, measure)
        rows = [
            [
                name,
                value,
                *(
                    getattr(d, measure)([n for n, _ in trace[: k + 1]])
                    for d in detectors
                ),
            ]
            for k, (name, value) in enumerate(trace)
        ]
        print(markdown(['added', 'mean', *(d.name for d in detectors)], rows))
    print('\n## The best of all sets by score\n')
    rows = []
    for size in range(1, length):
        best, value = best_subset(detectors, pool, size)
        rows.append([size, value, ', '.join(best)])
    print(markdown(['size', 'mean', 'set'], rows))
    print('\n## Leaving one detector out, by score: the order, and the set on it\n')
    size = 4
    rows = []
    for left in detectors:
        others = [d for d in detectors if d is not left]
        order = [n for n, _ in forward_selection(others, pool, size, 'score')]
        own = [n for n, _ in forward_selection([left], pool, size, 'score')]
        rows.append(
            [left.name, ', '.join(order), left.score(order), left.score(own)]
            + [left.map(order), left.map(own)]
        )
    header = ['left out', 'chosen on the others', 'score', 'score of its own choice']
    print(markdown([*header, 'mAP', 'mAP of its own choice'], rows))
    print('\n## How often a set holds a candidate, over samples of images\n')
    sizes = (2, 3, 4, 6)
    shares = [stability(detectors, pool, size) for size in sizes]
    rows = [[name, *(share[name] for share in shares)] for name in pool]
    rows.sort(key=lambda row: -sum(row[1:]))
    print(markdown(['candidate', *(f'of {size}' for size in sizes)], rows))


def print_set(
    detectors: Sequence[Detector], label: str, members: Sequence[str]
) -> None:
    """An ordered set: what each member adds, and what skipping broken images saves."""
    for measure in ('map', 'score'):
        print(f'\n## {label}: {measure} after each member\n')
        rows = []
        for k, name in enumerate(members):
            values = [getattr(d, measure)(members[: k + 1]) for d in detectors]
            rows.append([name, *values, mean(values)])
        print(markdown(['member', *(d.name for d in detectors), 'mean'], rows))
    print(f'\n## {label}: later members leave broken images alone\n')
    rows = []
    for fraction in (None, 0.0, 0.05, 0.1, 0.2):
        found = [
            d.skipping(members, fraction)
            if fraction is not None
            else (d.map(members), d.score(members), 1.0)
            for d in detectors
        ]
        for index, what in enumerate(('mAP', 'score', 'cost')):
            values = [float(f[index]) for f in found]
            rows.append([fraction, what, *values, mean(values)])
    print(markdown(['fraction', '', *(d.name for d in detectors), 'mean'], rows))


def print_comparison(
    detectors: Sequence[Detector], sets: Sequence[Sequence[str]]
) -> None:
    """Sets side by side, with their cost."""
    rows = []
    for members in sets:
        for detector in detectors:
            if all(m in detector.tables for m in members):
                cost = round(sum(detector.passes[m] for m in members))
                values = [detector.map(members), detector.score(members)]
                rows.append([', '.join(members), detector.name, cost, *values])
    if rows:
        rows.sort(key=lambda row: row[1])
        print('\n## Sets side by side\n')
        print(markdown(['set', 'detector', 'passes', 'mAP', 'score'], rows))


def _unpickle(path: Path) -> object:
    with open(path, 'rb') as file:
        return pickle.load(file)


if __name__ == '__main__':
    cli.run(main)
