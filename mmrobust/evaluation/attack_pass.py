"""One attack on all images: first what it finds, then what that scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.dist import collect_results, get_world_size
from mmengine.structures import BaseDataElement

from ..attacks import Attack, Ensemble
from ..checks import pass_verdicts
from ..report import AttackResult
from ..utils.store import StorePart
from .adversarial_images import AdversarialImages, dumps_renamed
from .box_analysis import BENIGN
from .ensemble import EnsemblePass
from .outcome import Outcome
from .progress import Progress

if TYPE_CHECKING:
    from .attack_evaluation import AttackEvaluation

_COSTS = ('forwards', 'backwards', 'queries', 'seconds')
# Sums over images: what a record of an image says, by member.
_Costs = dict[str, dict[str, dict[str, Any]]]


class AttackPass:
    """The pass of an attack, or of an ensemble of some.

    Args:
        evaluation: the loop, with its data, model and records.
        name: of the attack in the evaluation.
        attack: the attack.
    """

    def __init__(
        self, evaluation: AttackEvaluation, name: str, attack: Attack | Ensemble
    ) -> None:
        self.evaluation = evaluation
        self.name = name
        self.result = AttackResult.of(name, attack, **_on_curve(name))
        self.members: dict[str, Attack] = {}
        self.ensemble: EnsemblePass | None = None
        if isinstance(attack, Ensemble):
            assert evaluation.analysis is not None
            self.members = attack.members
            self.ensemble = EnsemblePass(
                name, attack, evaluation.analysis, evaluation.benign_boxes
            )
        else:
            self.members = {name: attack}
        settings = [[key, _settings(member)] for key, member in self.members.items()]
        self.records: StorePart = evaluation.records.part(
            name,
            [settings, evaluation.attack_configs.get(name), evaluation.save_adv],
        )
        # Where the images of the attack, or those chosen from an ensemble, are.
        self.saver = AdversarialImages.maybe(
            evaluation.save_adv, name, {**attack.describe(), 'space': evaluation.space}
        )
        if evaluation.gallery:
            evaluation.gallery.start(name, self.records.folder)
        self.savers = {
            key: AdversarialImages.maybe(
                evaluation.save_adv,
                f'{name}/{key}',
                {**member.describe(), 'space': evaluation.space},
            )
            if self.ensemble
            else self.saver
            for key, member in self.members.items()
        }

    def run(self, progress: Progress) -> AttackResult:
        """Attacks what is not on record, and scores everything."""
        costs: _Costs = {}
        progress.start(self.name)
        for index, data_batch in enumerate(self.evaluation.dataloader):
            shown: list[Outcome] = []
            parts = list(self.evaluation.parts(index, data_batch))
            for (part, keys), outcomes in zip(
                parts, self._outcomes(parts), strict=True
            ):
                costs['|'.join(map(str, keys))] = {
                    key: outcome.cost() for key, outcome in outcomes.items()
                }
                worst = self.ensemble.add(outcomes) if self.ensemble else self.name
                shown.append(outcomes[worst])
                self._draw(part, keys, outcomes[worst])
            self._show(index, data_batch, shown)
            progress.update(index + 1)
        progress.finish()
        self.records.wait_for_others()
        costs = self._add_up(costs)
        chosen = (
            self.ensemble.choose(self.result, costs, self.records)
            if self.ensemble
            else None
        )
        metrics, self.result.boxes = self._score('outputs', chosen)
        self.result.metrics = metrics
        if self.evaluation.quantize:
            quantized, boxes = self._score('quantized', chosen)
            sizes = [
                cost['radius'] for each in costs.values() for cost in each.values()
            ]
            self.result.quantized = {
                'metrics': quantized,
                'boxes': boxes,
                'radius': max(
                    (size for size in sizes if size is not None), default=None
                ),
            }
        return self.result

    # ---------------------------------------------------------------------- attacking

    def _outcomes(self, parts: Sequence[tuple[dict, list]]) -> list[dict[str, Outcome]]:
        """What the members made of each part, from the records or freshly."""
        found = [self._on_record(part, keys) for part, keys in parts]
        for group in self.evaluation.attacker.groups([part for part, _ in parts]):
            known = [outcomes for place in group if (outcomes := found[place])]
            if len(known) == len(group):
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

    def _attack(self, parts: list[dict]) -> list[dict[str, Outcome]]:
        """Has every member attack a group; what is broken leaves it."""
        attacker, left = self.evaluation.attacker, list(range(len(parts)))
        outcomes: list[dict[str, Outcome]] = [{} for _ in parts]
        for key, member in self.members.items():
            if len(left) == 1:
                fresh = [attacker.attack(member, parts[left[0]])]
            else:
                fresh = attacker.attack_together(member, [parts[i] for i in left])
            saver = self.savers[key]
            for place, outcome in zip(left, fresh, strict=True):
                outcomes[place][key] = outcome
                if saver:
                    samples = parts[place]['data_samples']
                    saver.save(samples, outcome.found or ())
            if self.ensemble:
                left = [i for i in left if not self.ensemble.is_broken(outcomes[i])]
            if not left:
                break
        return outcomes

    def _all_there(self, record: dict[str, Any], part: dict, keys: list) -> bool:
        """Whether images and pictures that belong to a record are still on disk."""
        gallery = self.evaluation.gallery
        if gallery and any(gallery.lacks(self.name, key) for key in keys):
            return False
        used = [self.savers[key] for key in record]
        return all(each.has(part['data_samples']) for each in used if each)

    def _draw(self, part: dict, keys: list, outcome: Outcome) -> None:
        """Draws freshly attacked images for the report."""
        gallery = self.evaluation.gallery
        if gallery is None or outcome.inputs is None:
            return
        for index, key in enumerate(keys):
            gallery.draw(
                self.name,
                key,
                part['inputs'][index],
                outcome.inputs[index],
                outcome.outputs[index],
                part['data_samples'][index],
            )

    def _show(self, index: int, data_batch: dict, outcomes: list[Outcome]) -> None:
        """Hands freshly attacked images to the hooks."""
        images = [image for outcome in outcomes for image in outcome.inputs or ()]
        outputs = [output for outcome in outcomes for output in outcome.outputs]
        if len(images) < len(outputs):
            return  # from records, which hold no images
        # Not after_test_iter: hooks there read the clean picture from disk and would
        # draw the attacked boxes on it, over the benign results.
        self.evaluation.runner.call_hook(
            'after_attack_iter',
            batch_idx=index,
            data_batch=data_batch,
            adversarial=images,
            outputs=outputs,
            attack=self.name,
            gt_frame=self.evaluation.gt_frame,
        )

    # ------------------------------------------------------------------------ scoring

    def _score(
        self, what: str, chosen: Callable[[Any], str] | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Computes the metrics of the predictions that are on record.

        Args:
            what: ``'outputs'`` or ``'quantized'``.
            chosen: names the member for an image, or BENIGN, of an ensemble.
        """
        evaluation, analysis = self.evaluation, self.evaluation.analysis
        found = []
        for index, data_batch in enumerate(evaluation.dataloader):
            outputs: list[BaseDataElement] = []
            for part, keys in evaluation.parts(index, data_batch):
                key = chosen(keys[0]) if chosen else self.name
                if what == 'outputs':
                    self._save_chosen(key, part)
                if key == BENIGN:
                    record, field = evaluation.benign_records.read(keys), 'outputs'
                else:
                    record, field = (self.records.read(keys) or {})[key], what
                assert record is not None
                outputs += getattr(Outcome.unpack(record, part), field)
            evaluation.evaluator.process(data_samples=outputs, data_batch=data_batch)
            if analysis:
                found += [analysis.read(output) for output in outputs]
        name = self.name if what == 'outputs' else f'{self.name}.{what}'
        with dumps_renamed(evaluation.evaluator, name):
            count = len(evaluation.dataloader.dataset)
            metrics = dict(evaluation.evaluator.evaluate(count))
        boxes = None
        if analysis:
            known = [each for each in found if each is not None]
            boxes = analysis.finish(name, known, keep=what == 'outputs')
        missing = [key for key in evaluation.benign_metrics if key not in metrics]
        if missing:
            # CocoMetric gives no numbers at all when nothing is detected any more.
            metrics.update(dict.fromkeys(missing, 0.0))
            text = 'no detection is left; missing metrics count as 0'
            if text not in self.result.checks:
                self.result.checks.append(text)
        return metrics, boxes

    def _save_chosen(self, member: str, part: dict) -> None:
        """Puts an ensemble's example where those of other attacks are."""
        if not self.ensemble or self.saver is None:
            return
        samples = part['data_samples']
        source = self.savers.get(member)
        if source:
            self.saver.take_over(source, samples)
        else:
            self.saver.save(samples, self.evaluation.attacker.clean(part))

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
        result.images = len(self.evaluation.dataloader.dataset)
        if outside:
            result.checks.append(
                f'{outside} boxes lie outside their image: is the frame of the boxes '
                f'({self.evaluation.gt_frame}) right?'
            )
        for key, rows in watched.items():
            if self.members[key].threat.eps == 0:
                continue  # where nothing can rise
            prefix = '' if key == self.name else f'{key}: '
            result.checks += [prefix + text for text in pass_verdicts(rows)]
        result.watched = _mean_of([row for rows in watched.values() for row in rows])
        return merged


def _mean_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the report says about gradients, as means over images and members."""
    if not rows:
        return None
    means: dict[str, Any] = {}
    for key in ('zero_share', 'all_zero_share'):
        known = [row[key] for row in rows if row[key] is not None]
        means[key] = sum(known) / len(known) if known else None
    risen = [row['best'] > row['first'] for row in rows if None not in _ends(row)]
    means['risen_share'] = sum(risen) / len(risen) if risen else None
    means['non_finite'] = sum(row['non_finite'] for row in rows)
    return means


def _on_curve(name: str) -> dict[str, str]:
    """The attack that points of a curve, like ``pgd-eps2``, have in common."""
    match = re.fullmatch(r'(.+?)((-eps\d[\w.]*)?(-steps\d+)?)', name)
    return {'base': match[1]} if match and match[2] else {}


def _ends(row: dict[str, Any]) -> tuple[Any, Any]:
    return row['first'], row['best']


def _settings(attack: Attack) -> dict[str, Any]:
    """What tells an attack from others."""
    # Figures of an objective that is weighted by classes depend on the weights.
    weights = attack.objective.class_weights
    return {
        'type': type(attack).__name__,
        **attack.describe(),
        'class_weights': None if weights is None else weights.tolist(),
    }
