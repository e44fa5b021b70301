"""Keeps the matches of all passes, for their intervals and their worst case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process

from ..analysis import (
    Interval,
    MatchTable,
    difference_interval,
    map_interval,
    map_values,
    mean_ap,
    mean_intervals,
    restrict,
    worst_case_intervals,
    worst_case_map,
    write_tables,
)

BENIGN = 'benign'


class PassTables:
    """Keeps match tables on the main process.

    Args:
        seed: of intervals and of the search for the worst case.

    Attributes:
        figure: what passes are compared by, as it is called in results.
        rounds: of the greedy search; the first ones do nearly all of its work.
        tables: matches of the passes that could be analysed, by name.
    """

    figure = 'mAP'
    rounds = 3

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.tables: dict[str, Any] = {}
        # Of passes that are not kept: mAP, and how it moves with the images.
        self._moves: dict[str, tuple[float, np.ndarray]] = {}

    def enter(
        self, name: str, table: MatchTable, keep: bool = True
    ) -> dict[str, dict[str, Any]]:
        """Takes in a pass.

        Args:
            name: of the pass.
            table: its matches.
            keep: whether it takes part in the worst case.

        Returns:
            Intervals: ``mAP`` and, if the benign pass is there, what was taken from it,
            ``drop``.
        """
        if keep:
            self.tables[name] = table
        interval = map_interval(table, seed=self.seed)
        if not keep:
            self._moves[name] = interval.estimate, map_values(table, seed=self.seed)
        result = {'mAP': asdict(interval)}
        if name != BENIGN and BENIGN in self.tables:
            benign = self.tables[BENIGN]
            drop = difference_interval(benign, table, seed=self.seed)
            result['drop'] = asdict(drop)
        return result

    def write(self, path: Path) -> None:
        """Writes the tables, by which figures of several reports are compared.

        Where there are none, those that an earlier run has left are removed.
        """
        if not is_main_process():
            return
        if self.tables:
            write_tables(path, self.tables)
        else:
            path.unlink(missing_ok=True)

    def mean_intervals(
        self, names: Sequence[Sequence[str]]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns intervals of a mean of passes that are not kept.

        Args:
            names: of the passes, in groups.

        Returns:
            That of the mean of the groups' means, and of its share of the benign mAP;
            None unless all of them have been analysed.
        """
        known = {name for group in names for name in group} <= set(self._moves)
        if not known or BENIGN not in self.tables:
            return None
        moves = [[self._moves[name] for name in group] for group in names]
        mean, share = mean_intervals(self.tables[BENIGN], moves, seed=self.seed)
        return asdict(mean), asdict(share)

    # What an ensemble asks for its choice.

    def value(self, table: Any) -> float:
        """Returns the figure of a table."""
        return mean_ap(table)

    def interval(self, table: Any) -> Interval:
        """Returns it with an interval."""
        return map_interval(table, seed=self.seed)

    def lowest(
        self, tables: Sequence[Any], rounds: int
    ) -> tuple[np.ndarray, float, dict[str, Any]]:
        """Returns the combination of the lowest figure that is found, and that.

        And what else the report says of the search.
        """
        found = worst_case_map(tables, seed=self.seed, max_rounds=rounds)
        about = {
            'per_image_mAP': found.per_image,
            'rounds': found.rounds,
            'converged': found.converged,
        }
        return found.assignment, found.mean_ap, about

    def lowest_intervals(
        self, tables: Sequence[Any], assignment: np.ndarray
    ) -> tuple[Interval, Interval]:
        """Returns intervals of that figure and of its fall from the first table."""
        return worst_case_intervals(tables, assignment, seed=self.seed)

    def restrict(self, table: Any, images: np.ndarray) -> Any:
        """Returns the table of some of the images."""
        return restrict(table, images)

    def worst_case(self) -> dict[str, Any] | None:
        """Returns the combination of passes, the benign one among them, that is lowest.

        Its figure is never above that of any attack, nor above the benign one.
        """
        names, tables = list(self.tables), list(self.tables.values())
        if len(names) < 3:  # the benign pass and one attack
            return None
        assignment, lowest, about = self.lowest(tables, self.rounds)
        interval, _ = self.lowest_intervals(tables, assignment)
        chosen = Counter(names[index] for index in assignment)
        return {
            self.figure: lowest,
            'interval': asdict(interval),
            'images': {name: chosen[name] for name in names},
            **about,
        }
