"""One benign pass, then one pass per attack: what both evaluation loops share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dist import collect_results, get_dist_info, get_world_size, is_distributed
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..attacks import Attack, Ensemble
from ..batch import gt_frame_of, image_id
from ..classification import is_classifier
from ..errors import ConfigError
from ..registry import ATTACKS
from ..report import AttackResult, RobustnessReport
from .adversaries.base import bare_model
from .attacker import Attacker, Outcome, ids_of
from .box_analysis import BENIGN, BoxAnalysis
from .counting import weights_for_evaluation
from .ensemble import EnsemblePass
from .preflight import check_has_boxes
from .progress import Progress
from .records import PassRecords, Records
from .saving import AdversarialImages, dumps_renamed
from .subset import restrict_metrics

_COSTS = ('forwards', 'backwards', 'queries', 'seconds')


class AttackEvaluation:
    """What the validation and the test loop share.

    The loops differ in the names of their hooks and in ``val_step``/``test_step``,
    which do the same in mmengine.
    """

    runner: Runner
    dataloader: Any
    evaluator: Evaluator
    fp16: bool
    stage: str

    def _set_up(
        self,
        attacks: dict[str, Any],
        seed: int,
        gt_frame: str,
        num_images: int | None,
        save_adv: str | None,
    ) -> None:
        self.attacks: dict[str, Attack | Ensemble] = {
            name: ATTACKS.build(attack) if isinstance(attack, dict) else attack
            for name, attack in attacks.items()
        }
        # Not all of an attack's settings need be in its description.
        self._configs = {k: v for k, v in attacks.items() if isinstance(v, dict)}
        if BENIGN in self.attacks:
            raise ConfigError(f'no attack can be called {BENIGN!r}: rename it.')
        self.seed = seed
        self.save_adv = save_adv
        dataset = self.dataloader.dataset
        if num_images is not None:
            restrict_metrics(self.evaluator, dataset)
        if gt_frame not in ('auto', 'original', 'input'):
            raise ConfigError(
                f"gt_frame={gt_frame!r} is unknown: choose 'auto', 'original', 'input'."
            )
        self.gt_frame = gt_frame
        if not self.attacks:
            return
        if is_distributed() and not getattr(self.dataloader.sampler, 'round_up', True):
            raise ConfigError(
                'results are put together from equal shares of the processes: set '
                'sampler.round_up=True in the test dataloader.'
            )
        check_has_boxes(dataset, 'attack')
        classifier = is_classifier(bare_model(self.runner.model))
        if gt_frame == 'auto' and not classifier:
            self.gt_frame = gt_frame_of(dataset)
        if classifier and any(isinstance(a, Ensemble) for a in self.attacks.values()):
            raise ConfigError(
                'the ensemble is for detectors: use autoattack for a classifier.'
            )

    def run(self) -> dict[str, float]:
        """Runs all passes.

        Returns:
            Benign metrics under their own names, and those of each attack behind the
            attack's name, like ``pgd/coco/bbox_mAP``.
        """
        runner, stage = self.runner, self.stage
        runner.call_hook(f'before_{stage}')
        runner.call_hook(f'before_{stage}_epoch')
        runner.model.eval()
        for metric in self.evaluator.metrics:
            metric.results.clear()  # of a run that was interrupted, in a notebook say
        notes = self._weight_classes()
        self.attacker = Attacker(runner.model, self.seed, self.gt_frame, self.fp16)
        notes += self._check_objectives()
        report = RobustnessReport.start(
            runner, self.dataloader.dataset, self.seed, notes
        )
        self.analysis = self._analysis()
        self.records = self._open_records()
        metrics = self._benign_pass(report)
        progress = Progress(list(self.attacks), len(self.dataloader), runner.logger)
        for name, attack in self.attacks.items():
            self._save(report, complete=False)
            progress.start(name)
            result = self._attack_pass(name, attack, report.benign, progress)
            report.attacks.append(result)
            metrics.update({f'{name}/{key}': v for key, v in result.metrics.items()})
        if self.analysis:
            # The search may take minutes, and nothing is to be lost meanwhile.
            self._save(report, complete=False)
            if len(self.attacks) > 1:
                report.worst_case = self.analysis.worst_case()
            report.checks += self.analysis.problems
        self._save(report, complete=True)
        self.records.remove()
        runner.call_hook(f'after_{stage}_epoch', metrics=metrics)
        runner.call_hook(f'after_{stage}')
        if self.attacks:
            print_log('\n' + report.table(), logger='current')
        return metrics

    # --------------------------------------------------- what only the test loop does

    def _analysis(self) -> BoxAnalysis | None:
        """Reads boxes; of a validation, only what the ensemble needs."""
        if not any(isinstance(attack, Ensemble) for attack in self.attacks.values()):
            return None
        dataset = self.dataloader.dataset
        if image_id(dataset[0]['data_samples']) is None or not self._unique_ids:
            raise ConfigError(
                'the ensemble needs images with ids of their own: is img_id among the '
                'meta_keys of PackDetInputs, and no image twice in the dataset?'
            )
        return BoxAnalysis(dataset, self.seed)

    def _open_records(self) -> Records:
        """Records that are lost when the process ends."""
        return Records(None, {})

    def _save(self, report: RobustnessReport, complete: bool) -> None:
        """Only the test loop keeps a report."""

    # ------------------------------------------------------------------------ passes

    def _benign_pass(self, report: RobustnessReport) -> dict[str, float]:
        """The evaluation without attack."""
        self._benign = self.records.of(BENIGN, {})
        self._found: dict[Any, Any] = {}
        for index, data_batch in enumerate(self.dataloader):
            self.run_iter(index, data_batch)
        self._benign.wait_for_others()
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        report.benign = dict(metrics)
        if self.analysis:
            found = [each for each in self._found.values() if each is not None]
            report.benign_boxes = self.analysis.finish(BENIGN, found)
        if not metrics:
            # CocoMetric's answer to no detection at all.
            text = 'the benign pass gave no metric: the model detects nothing'
            report.checks.append(text)
            print_log(text, logger='current', level=logging.WARNING)
        return dict(metrics)

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        """As mmengine's, but every image goes through a detector by itself.

        As it does under attack, so that the two can be compared whatever the batch
        size, and the figures do not depend on the number of processes.
        """
        if not self.attacks:
            super().run_iter(idx, data_batch)  # type: ignore[misc]
            return
        runner, stage = self.runner, self.stage
        runner.call_hook(f'before_{stage}_iter', batch_idx=idx, data_batch=data_batch)
        outputs: list[BaseDataElement] = []
        for part, keys in self._parts(idx, data_batch):
            record = self._benign.read(keys, part['inputs'])
            if record is None:
                outcome = Outcome(self.attacker.predict(part))
                self._benign.write(keys, outcome.pack(part), part['inputs'])
            else:
                outcome = Outcome.unpack(record, part)
            outputs += outcome.outputs
        if self.analysis:
            for output in outputs:
                found = self.analysis.read(output)
                self._found[output.get('img_id')] = found
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        runner.call_hook(
            f'after_{stage}_iter',
            batch_idx=idx,
            data_batch=data_batch,
            outputs=outputs,
        )

    def _attack_pass(
        self,
        name: str,
        attack: Attack | Ensemble,
        benign: dict[str, float],
        progress: Progress,
    ) -> AttackResult:
        """Attacks all images, then scores what was found."""
        result = AttackResult(name, attack.describe())
        members = attack.members if isinstance(attack, Ensemble) else {name: attack}
        # Figures of an objective that is weighted by classes depend on the weights.
        settings = [[key, _settings(member)] for key, member in members.items()]
        given = self._configs.get(name)
        records = self.records.of(name, [settings, given, self.save_adv])
        costs: dict[str, dict[str, Any]] = {}
        savers = {
            key: AdversarialImages.maybe(
                self.save_adv,
                name if key == name else f'{name}/{key}',
                member.describe(),
            )
            for key, member in members.items()
        }
        ensemble = (
            EnsemblePass(name, attack, self.analysis, self._found)
            if isinstance(attack, Ensemble) and self.analysis
            else None
        )
        for index, data_batch in enumerate(self.dataloader):
            shown: list[Outcome] = []
            for part, keys in self._parts(index, data_batch):
                record = records.read(keys, part['inputs'])
                if record and not _all_saved(savers, record, part):
                    record = None
                if record is None:
                    outcomes = self._attack(members, part, ensemble)
                    for key, outcome in outcomes.items():
                        if saver := savers[key]:
                            saver.save(part['data_samples'], outcome.images or ())
                    packed = {key: each.pack(part) for key, each in outcomes.items()}
                    records.write(keys, packed, part['inputs'])
                else:
                    outcomes = {
                        key: Outcome.unpack(each, part) for key, each in record.items()
                    }
                costs['|'.join(map(str, keys))] = {
                    key: outcome.cost() for key, outcome in outcomes.items()
                }
                worst = ensemble.add(outcomes) if ensemble else name
                shown.append(outcomes[worst])
            self._show(index, data_batch, shown, name)
            progress.update(index + 1)
        progress.finish()
        records.wait_for_others()
        merged = self._add_up(result, costs)
        chosen = ensemble.choose(result, merged) if ensemble else None
        self._score(result, records, chosen)
        self._complete(result, benign)
        return result

    def _attack(
        self,
        members: dict[str, Attack],
        part: dict,
        ensemble: EnsemblePass | None,
    ) -> dict[str, Outcome]:
        """Lets the members work on a part, until it is broken."""
        outcomes: dict[str, Outcome] = {}
        for key, member in members.items():
            outcomes[key] = self.attacker.attack(member, part)
            if ensemble and ensemble.is_broken(outcomes):
                break
        return outcomes

    def _score(
        self,
        result: AttackResult,
        records: PassRecords,
        chosen: Callable[[Any], str] | None,
    ) -> None:
        """Computes the metrics of the predictions that are on record."""
        found = []
        for index, data_batch in enumerate(self.dataloader):
            outputs: list[BaseDataElement] = []
            for part, keys in self._parts(index, data_batch):
                key = chosen(keys[0]) if chosen else result.name
                record = (
                    self._benign.read(keys)
                    if key == BENIGN
                    else (records.read(keys) or {})[key]
                )
                assert record is not None
                outputs += Outcome.unpack(record, part).outputs
            self.evaluator.process(data_samples=outputs, data_batch=data_batch)
            if self.analysis:
                found += [self.analysis.read(output) for output in outputs]
        with dumps_renamed(self.evaluator, result.name):
            count = len(self.dataloader.dataset)
            result.metrics = dict(self.evaluator.evaluate(count))
        if self.analysis:
            boxes = [each for each in found if each is not None]
            result.boxes = self.analysis.finish(result.name, boxes)

    def _complete(self, result: AttackResult, benign: dict[str, float]) -> None:
        missing = [key for key in benign if key not in result.metrics]
        if missing:
            # CocoMetric gives no numbers at all when nothing is detected any more.
            result.metrics.update(dict.fromkeys(missing, 0.0))
            result.checks.append('no detection is left; missing metrics count as 0')

    def _add_up(
        self, result: AttackResult, costs: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Sums costs over images; several processes may share a padded one."""
        gathered = collect_results([costs], get_world_size(), device='cpu') or []
        merged = {key: cost for each in gathered for key, cost in each.items()}
        outside = 0
        for members in merged.values():
            for cost in members.values():
                for key in _COSTS:
                    setattr(result, key, getattr(result, key) + cost[key])
            outside += next(iter(members.values()))['outside']
        result.images = len(self.dataloader.dataset)
        if outside:
            result.checks.append(
                f'{outside} boxes lie outside their image: is the frame of the boxes '
                f'({self.gt_frame}) right?'
            )
        return merged

    def _show(
        self, index: int, data_batch: dict, outcomes: list[Outcome], name: str
    ) -> None:
        """Hands freshly attacked images to the hooks."""
        images = [image for outcome in outcomes for image in outcome.images or ()]
        outputs = [output for outcome in outcomes for output in outcome.outputs]
        if len(images) < len(outputs):
            return  # from records, which hold no images
        # Not after_test_iter: hooks there read the clean picture from disk and would
        # draw the attacked boxes on it, over the benign results.
        self.runner.call_hook(
            'after_attack_iter',
            batch_idx=index,
            data_batch=data_batch,
            adversarial=images,
            outputs=outputs,
            attack=name,
            gt_frame=self.gt_frame,
        )

    # ------------------------------------------------------------------ before passes

    def _parts(self, index: int, data_batch: dict) -> Iterator[tuple[dict, list]]:
        """The parts of a batch, and what their records are called."""
        rank, world_size = get_dist_info()
        for number, part in enumerate(self.attacker.parts(data_batch)):
            keys = ids_of(part)
            if None in keys or not self._unique_ids:
                keys = [f'{rank} of {world_size}, batch {index}, part {number}']
            yield part, keys

    @property
    def _unique_ids(self) -> bool:
        if not hasattr(self, '_ids_are_unique'):
            dataset = self.dataloader.dataset
            if not hasattr(dataset, 'get_data_info'):
                return False
            infos = (dataset.get_data_info(i) for i in range(len(dataset)))
            ids = {info.get('img_id', info.get('sample_idx')) for info in infos}
            self._ids_are_unique = len(ids) == len(dataset)
        return self._ids_are_unique

    def _all_attacks(self) -> list[Attack]:
        """The attacks, and the members of an ensemble in its place."""
        found: list[Attack] = []
        for attack in self.attacks.values():
            found += (
                attack.members.values() if isinstance(attack, Ensemble) else [attack]
            )
        return found

    def _check_objectives(self) -> list[str]:
        loader = self.dataloader
        return self.attacker.check(
            self._all_attacks(), loader.dataset, loader.collate_fn
        )

    def _weight_classes(self) -> list[str]:
        """Weights classes for the objectives that need it; returns notes."""
        waiting = [a for a in self._all_attacks() if a.objective.needs_class_weights]
        if not waiting:
            return []
        if is_classifier(bare_model(self.runner.model)):
            raise ConfigError(
                "the objective 'cwa' is for detectors: use 'total' for a classifier."
            )
        weights, notes = weights_for_evaluation(
            self.runner.cfg.get('train_dataloader'), self.dataloader.dataset
        )
        for attack in waiting:
            attack.objective.class_weights = weights
        return notes


def _all_saved(
    savers: dict[str, AdversarialImages | None], record: dict[str, Any], part: dict
) -> bool:
    """Whether the images that a record speaks of are still on disk."""
    used = [savers[key] for key in record]
    return all(each.has(part['data_samples']) for each in used if each)


def _settings(attack: Attack) -> dict[str, Any]:
    """What tells an attack from others."""
    weights = attack.objective.class_weights
    return {
        'type': type(attack).__name__,
        **attack.describe(),
        'class_weights': None if weights is None else weights.tolist(),
    }
