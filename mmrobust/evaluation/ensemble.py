"""Decides for an ensemble when an image is broken, and which example counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..attacks import Attack
from ..batch import image_id
from ..checks import comparison_verdicts
from ..errors import ConfigError
from ..report import AttackResult, figure_of
from ..utils.store import StorePart
from .attacker import Outcome
from .benign_pass import BenignPass
from .box_analysis import BoxAnalysis, ReadDetections, read_by
from .pass_tables import BENIGN


class WorstOf:
    """Keeps the lowest combination of tables found so far, as tables come in.

    A search over more tables may end in another optimum, and a higher one.
    """

    def __init__(self, benign: Any, analysis: BoxAnalysis) -> None:
        self.analysis = analysis
        self.assignment = np.zeros(len(benign.img_ids), dtype=np.int64)
        self.value = analysis.value(benign)

    def search(self, tables: Sequence[Any], rounds: int) -> None:
        """Takes a better combination of the tables, if one is found."""
        assignment, value, _ = self.analysis.lowest(tables, rounds)
        if not self.value <= value:
            self.assignment, self.value = assignment, value


# What an ensemble reads by each analysis, and judged_by of another one.
_READ = {
    'boxes': ('upright boxes', 'segm'),
    'masks': ('masks', 'bbox'),
    'panoptic': ('panoptic segmentations', 'bbox'),
}


def check_readable(
    found: Mapping[Any, ReadDetections], judged_by: str
) -> dict[Any, Any]:
    """Returns the detections by image id, all of which have to be there.

    Args:
        found: by image id.
        judged_by: name of the analysis that the ensemble chooses by.

    Raises:
        ConfigError: if what is predicted on an image could not be read.
    """
    known = {key: each[judged_by] for key, each in found.items()}
    readable = {key: each for key, each in known.items() if each is not None}
    if len(readable) < len(known):
        kind, other = _READ[judged_by]
        raise ConfigError(
            f'the ensemble reads {kind}, and the model gave none for an image: set '
            f"judged_by='{other}' in the test loop (--judged-by {other}), or use "
            "attacks on its losses, such as 'apgd'."
        )
    return readable


@dataclass
class EnsemblePass:
    """Keeps what every member left, and chooses among them."""

    name: str  # of the ensemble in the evaluation
    members: Mapping[str, Attack]  # its attacks by name
    # Read detections and hold the ground truth; the first one chooses.
    analyses: Mapping[str, BoxAnalysis]
    benign: BenignPass  # what was found on the clean images

    def __post_init__(self) -> None:
        self.judged_by, self.analysis = next(iter(self.analyses.items()))
        self._clean = check_readable(self.benign.found, self.judged_by)
        # By member, in the order of the images.
        self._found: dict[str, list[ReadDetections]] = {k: [] for k in self.members}
        # Of the figure and its fall, once the choice is made; on the main process.
        self.intervals: dict[str, Any] = {}

    def is_broken(self, outcomes: dict[str, Outcome]) -> bool:
        """Returns whether nothing is detected any more, so that no member need go on.

        An image of which a little is left still adds to mAP: on five small detectors
        skipping it from a tenth of its benign score on left the worst-case mAP higher
        by up to 0.04, and saved 8 % of the passes (experiments/ensemble).
        """
        # Those before it left something, or it would not have run.
        (newest,) = list(outcomes.values())[-1:]
        return self._score(self._read(newest)) <= 0

    def add(self, outcomes: dict[str, Outcome]) -> str:
        """Takes in what the members made of an image.

        Returns:
            The member whose example leaves least of the image's score.
        """
        found = {key: self._read(outcome) for key, outcome in outcomes.items()}
        worst = min(found, key=lambda key: self._score(found[key]))
        for key, kept in self._found.items():
            # A member that had not to run has the example that broke the image.
            kept.append(found.get(key, found[worst]))
        return worst

    def choose(
        self,
        result: AttackResult,
        costs: dict[str, dict[str, Any]],
        records: StorePart,
    ) -> Callable[[Any], str]:
        """Searches the combination that leaves least, over all processes' images.

        Args:
            result: gets the members' part of the report.
            costs: of every image and member, on the main process.
            records: of the pass, through which other processes learn of the choice.

        Returns:
            A function that names the member to choose for an image's id, or BENIGN.
        """
        tables = {BENIGN: self.analysis.match(list(self._clean.values()))}
        for key in self._found:
            tables[key] = self.analysis.match(self._of(key, self.judged_by))
        # All of them or none: other processes than the main one have no table.
        whole = {key: table for key, table in tables.items() if table is not None}
        choice = list(self._search(result, whole, costs).items()) if whole else None
        choice = records.shared(choice)
        if choice is None:
            raise ConfigError(
                'the ensemble needs images with ids of their own: is an image twice in '
                'the dataset?'
            )
        for name, analysis in self.analyses.items():
            if name != self.judged_by:
                for key in self._found:
                    analysis.keep(f'{self.name}/{key}', self._of(key, name))
        return dict(choice).__getitem__

    def _of(self, key: str, name: str) -> list[Any]:
        """Returns what a member left, as an analysis could read it."""
        read = [each[name] for each in self._found[key]]
        return [each for each in read if each is not None]

    def _search(
        self,
        result: AttackResult,
        tables: dict[str, Any],
        costs: dict[str, dict[str, Any]],
    ) -> dict[Any, str]:
        names, matches = list(tables), list(tables.values())
        analysis, figure = self.analysis, self.analysis.figure
        best = WorstOf(matches[0], analysis)
        result.members = []
        for number, (key, member) in enumerate(self.members.items(), 2):
            # One round on the way, so that members can be compared.
            best.search(matches[:number], rounds=1)
            ran = [each[key] for each in costs.values() if key in each]
            result.members.append(
                {
                    'name': key,
                    'settings': member.describe(),
                    'images': len(ran),
                    figure: best.value,
                    f'own_{figure}': analysis.value(tables[key]),
                    'forwards': sum(cost['forwards'] for cost in ran),
                    'backwards': sum(cost['backwards'] for cost in ran),
                    'seconds': round(sum(cost['seconds'] for cost in ran), 2),
                }
            )
        best.search(matches, analysis.rounds)
        found = analysis.lowest_intervals(matches, best.assignment)
        self.intervals = dict(zip((figure, 'drop'), map(asdict, found), strict=True))
        chosen = {
            each: _that_ran(names[index], costs[str(each)])
            for each, index in zip(matches[0].img_ids, best.assignment, strict=True)
        }
        counts = Counter(chosen.values())
        for row in result.members:
            row['chosen'] = counts[row['name']]
        for key, table in tables.items():
            if key != BENIGN:
                analysis.tables[f'{self.name}/{key}'] = table
        self._judge(result, tables, costs)
        return chosen

    def _judge(
        self,
        result: AttackResult,
        tables: Mapping[str, Any],
        costs: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Judges members by each other, where all of them ran.

        On the other images the late ones show what an early one has found.
        """
        ids = tables[BENIGN].img_ids
        ran = np.array(
            [len(costs.get(str(each), ())) == len(self.members) for each in ids]
        )
        if not ran.any():
            return
        analysis = self.analysis
        boxes = {
            key: {
                analysis.figure: asdict(
                    analysis.interval(analysis.restrict(table, ran))
                )
            }
            for key, table in tables.items()
        }
        results = [
            AttackResult.of(key, member, boxes=boxes[key])
            for key, member in self.members.items()
        ]
        found = comparison_verdicts(figure_of({}, boxes[BENIGN]), results)
        where = f'on the {int(ran.sum())} images that every member attacked'
        for key, sentences in found.items():
            result.checks += [f'{key}: {where}, {text}' for text in sentences]

    def _read(self, outcome: Outcome) -> ReadDetections:
        (output,) = outcome.outputs
        found = read_by(self.analyses, output)
        check_readable({image_id(output): found}, self.judged_by)
        return found

    def _score(self, found: ReadDetections) -> float:
        known = found[self.judged_by]
        assert known is not None
        return self.analysis.score_of(known)


def _that_ran(member: str, costs: dict[str, Any]) -> str:
    """Returns the member, or the last one that ran if it did not."""
    return member if member == BENIGN or member in costs else list(costs)[-1]
