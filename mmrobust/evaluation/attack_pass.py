"""Makes one attack on all images, scores what it found, and adds up what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.dist import collect_results, get_world_size
from mmengine.structures import BaseDataElement

from ..attacks import Attack
from ..batch import with_images
from ..checks import pass_verdicts
from ..errors import doing
from ..report import AttackResult
from ..utils.store import StorePart
from .adversarial_images import AdversarialImages
from .attacker import Attacker, Outcome
from .benign_pass import Scores
from .ensemble import EnsemblePass
from .images import EvaluatedImages, NamedPart, Progress, ids_of, names_of
from .load import load_of, summary
from .pass_tables import BENIGN
from .visualization import Gallery

_COSTS = ('forwards', 'backwards', 'queries', 'seconds')
# What the records of images say about cost, by image and member.
_Costs = dict[str, dict[str, dict[str, Any]]]


@dataclass
class AttackPass:
    """Makes the pass of an attack, or of an ensemble of some.

    Predictions are scored as they are made. Only the choice of an ensemble, which is
    made when all images are done, and pictures of 8 bits need a second pass through
    the data: a metric may write files as it goes, so that it can only follow one pass
    at a time.
    """

    name: str  # of the attack in the evaluation
    attack: Attack
    images: EvaluatedImages
    attacker: Attacker
    records: StorePart  # of what was found out before
    scores: Scores
    ensemble: EnsemblePass | None = None  # chooses among the members' examples
    gallery: Gallery | None = None
    save_adv: str | None = None  # folder for the adversarial images
    base: str | None = None  # what the points of a curve have in common
    judged_by: str = 'boxes'  # see AttackResult
    # Called after each batch with the name, the batch's index, itself and its outcomes.
    show: Callable[[str, int, dict, list[Outcome]], None] = lambda *_: None

    def __post_init__(self) -> None:
        self.result = AttackResult.of(
            self.name, self.attack, base=self.base, judged_by=self.judged_by
        )
        self.members = self.attack.members or {self.name: self.attack}
        # Where the images of the attack, or those chosen from an ensemble, are.
        self._saver = self._saver_of(self.name, self.attack)
        self._savers = {
            key: self._saver_of(f'{self.name}/{key}', member)
            if self.ensemble
            else self._saver
            for key, member in self.members.items()
        }
        if self.gallery:
            # Corruptions are many, and one picture shows what each is like.
            alone = self.attack.corruption and self.attack.asks == 'nothing'
            self.gallery.start(self.name, self.records.folder, 1 if alone else None)

    def run(self, progress: Progress) -> AttackResult:
        """Attacks what is not on record, and scores everything."""
        costs: _Costs = {}
        loads: dict[str, dict[str, Any]] = {}
        progress.start(self.name)
        for index, data_batch, parts in self.images:
            shown: list[Outcome] = []
            for (part, keys), outcomes in zip(
                parts, self._outcomes(parts), strict=True
            ):
                name = '|'.join(map(str, keys))
                costs[name] = {key: outcome.cost() for key, outcome in outcomes.items()}
                worst = self.ensemble.add(outcomes) if self.ensemble else self.name
                shown.append(outcomes[worst])
                self._draw(part, keys, outcomes[worst])
                if load := outcomes[worst].load:
                    loads[name] = load
            if not self.ensemble:
                outputs = [output for outcome in shown for output in outcome.outputs]
                self.scores.add(outputs, data_batch)
            self.show(self.name, index, data_batch, shown)
            progress.update(index + 1)
        progress.finish()
        self.records.wait_for_others()
        costs = self._add_up(costs)
        if not self.ensemble:  # whose choice comes later
            self.result.load = summary(loads)
        choice: Callable[[Any], str] = lambda _: self.name  # noqa: E731
        if self.ensemble:
            choice = self.ensemble.choose(self.result, costs, self.records)
            self._read_again('outputs', choice)
        # A worst case is over attacks on the pictures as they are.
        keep = self.attack.corruption is None
        self.result.metrics, told = self._score(self.name, keep)
        for key, found in told.items():
            setattr(self.result, key, found)
        self.result.patches = self._patches(costs)
        if self.ensemble and (chosen := told.get(self.ensemble.judged_by)):
            # Those that know of the choice.
            chosen.update(self.ensemble.intervals)
        if self.attacker.quantize:
            self._read_again('quantized', choice)
            metrics, told = self._score(f'{self.name}.quantized', keep=False)
            sizes = [
                cost['radius'] for each in costs.values() for cost in each.values()
            ]
            known = [size for size in sizes if size is not None]
            self.result.quantized = {
                'metrics': metrics,
                'boxes': None,
                **told,
                'radius': max(known, default=None),
            }
        return self.result

    # ---------------------------------------------------------------------- attacking

    def _outcomes(self, parts: Sequence[NamedPart]) -> list[dict[str, Outcome]]:
        """Returns what members made of each part, from records or freshly."""
        found = [self._on_record(part, keys) for part, keys in parts]
        for group in self.attacker.groups([part for part, _ in parts]):
            if all(found[place] is not None for place in group):
                continue
            # All of them anew: in another group rounding would not be the same.
            fresh = self._attack([parts[place][0] for place in group])
            for place, outcomes in zip(group, fresh, strict=True):
                part, keys = parts[place]
                packed = {key: each.pack(part) for key, each in outcomes.items()}
                self.records.write(keys, packed, part['inputs'])
                found[place] = outcomes
        return [outcomes for outcomes in found if outcomes is not None]

    def _on_record(self, part: dict, keys: list) -> dict[str, Outcome] | None:
        record = self.records.read(keys, part['inputs'])
        if record is None or not self._all_there(record, part, keys):
            return None
        return {key: Outcome.unpack(each, part) for key, each in record.items()}

    def _all_there(self, record: dict[str, Any], part: dict, keys: list) -> bool:
        """Returns whether the images and pictures of a record are still on disk."""
        if self.gallery and any(self.gallery.lacks(self.name, key) for key in keys):
            return False
        used = [self._savers[key] for key in record]
        return all(each.has(part['data_samples']) for each in used if each)

    def _attack(self, parts: list[dict]) -> list[dict[str, Outcome]]:
        """Has every member attack a group; what is broken leaves it."""
        left = list(range(len(parts)))
        outcomes: list[dict[str, Outcome]] = [{} for _ in parts]
        for key, member in self.members.items():
            name = key if key == self.name else f'{key} of {self.name}'
            ids = [each for place in left for each in ids_of(parts[place])]
            with doing(f'attacking {names_of(ids)} with {name}'):
                if len(left) == 1:
                    fresh = [self.attacker.attack(member, parts[left[0]])]
                else:
                    group = [parts[place] for place in left]
                    fresh = self.attacker.attack_together(member, group)
            saver = self._savers[key]
            for place, outcome in zip(left, fresh, strict=True):
                outcomes[place][key] = outcome
                if self.attacker.measures_load:
                    shown = with_images(parts[place], outcome.inputs or ())
                    outcome.load = load_of(self.attacker, shown)
                if saver:
                    saver.save(parts[place]['data_samples'], outcome.found or ())
            if self.ensemble:
                left = [i for i in left if not self.ensemble.is_broken(outcomes[i])]
            if not left:
                break
        return outcomes

    def _draw(self, part: dict, keys: list, outcome: Outcome) -> None:
        """Draws freshly attacked images for the report."""
        if self.gallery is None or outcome.inputs is None:
            return
        rows = (keys, outcome.inputs, outcome.outputs, part['data_samples'])
        for row in zip(*rows, strict=True):
            self.gallery.draw(self.name, *row)

    def _saver_of(self, name: str, attack: Attack) -> AdversarialImages | None:
        about = {**attack.describe(), 'space': self.attacker.space}
        return AdversarialImages.maybe(self.save_adv, name, about)

    # ------------------------------------------------------------------------ scoring

    def _read_again(self, what: str, choice: Callable[[Any], str]) -> None:
        """Scores predictions that are on record.

        Args:
            what: ``'outputs'`` or ``'quantized'``.
            choice: names the member for an image, or BENIGN.
        """
        for _, data_batch, parts in self.images:
            outputs: list[BaseDataElement] = []
            for part, keys in parts:
                key = choice(keys[0])
                if what == 'outputs':
                    self._save_chosen(key, part)
                if key == BENIGN:
                    assert self.ensemble is not None
                    record, field = self.ensemble.benign.records.read(keys), 'outputs'
                else:
                    record, field = (self.records.read(keys) or {})[key], what
                assert record is not None
                outputs += getattr(Outcome.unpack(record, part), field)
            self.scores.add(outputs, data_batch)

    def _score(
        self, name: str, keep: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        metrics, told = self.scores.compute(name, keep)
        missing = [key for key in self.scores.expected or () if key not in metrics]
        if missing:
            # CocoMetric gives no numbers at all when nothing is detected any more.
            metrics.update(dict.fromkeys(missing, 0.0))
            text = 'no detection is left; missing metrics count as 0'
            # Under a corruption, which is no attack, there is nothing to doubt in it.
            if text not in self.result.checks and not self.attack.corruption:
                self.result.checks.append(text)
        return metrics, told

    def _patches(self, costs: _Costs) -> dict[str, Any] | None:
        """Says what the attack's patches did, if it has some."""
        rows = (cost for members in costs.values() for cost in members.values())
        placed = [pair for cost in rows for pair in cost['patches'] or ()]
        boxes = self.scores.analyses.get('boxes')
        if self.ensemble or not placed or boxes is None:
            return None
        return boxes.patches(dict(placed))

    def _save_chosen(self, member: str, part: dict) -> None:
        """Puts an ensemble's example where those of other attacks are."""
        if self._saver is None:
            return
        samples = part['data_samples']
        source = self._savers.get(member)
        if source:
            self._saver.take_over(source, samples)
        else:
            self._saver.save(samples, self.attacker.clean(part))

    def _add_up(self, costs: _Costs) -> _Costs:
        """Sums costs over images; several processes may share a padded one.

        Returns:
            The costs of all images, on the main process.
        """
        result = self.result
        gathered = collect_results([costs], get_world_size(), device='cpu') or []
        # Sorted: sums are to be the same for any number of processes.
        pairs = (pair for each in gathered for pair in each.items())
        merged = dict(sorted(pairs, key=lambda pair: pair[0]))
        outside = 0
        watched: dict[str, list[dict[str, Any]]] = {key: [] for key in self.members}
        for members in merged.values():
            for key, cost in members.items():
                watched[key] += cost['watched']
                for name in _COSTS:
                    setattr(result, name, getattr(result, name) + cost[name])
            outside += next(iter(members.values()))['outside']
        result.images = self.scores.size
        if outside:
            result.checks.append(
                f'{outside} boxes lie outside their image: is the frame of the boxes '
                f'({self.attacker.gt_frame}) right?'
            )
        for key, rows in watched.items():
            if self.members[key].threat.eps == 0:
                continue  # where nothing can rise
            prefix = '' if key == self.name else f'{key}: '
            result.checks += [prefix + text for text in pass_verdicts(rows)]
        result.watched = _mean_of([row for rows in watched.values() for row in rows])
        return merged


def _mean_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Averages what oracles saw of gradients over images and members."""
    if not rows:
        return None
    means: dict[str, Any] = {}
    for key in ('zero_share', 'all_zero_share'):
        known = [row[key] for row in rows if row[key] is not None]
        means[key] = sum(known) / len(known) if known else None
    ends = [(row['first'], row['best']) for row in rows]
    risen = [best > first for first, best in ends if None not in (first, best)]
    means['risen_share'] = sum(risen) / len(risen) if risen else None
    means['non_finite'] = sum(row['non_finite'] for row in rows)
    return means
