"""One benign pass, then one pass per attack: what both evaluation loops share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import get_dist_info, is_distributed
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..analysis import Detections
from ..attacks import Attack, Ensemble
from ..batch import check_batch, gt_frame_of, image_id
from ..blame import models_own
from ..checks import comparison_verdicts
from ..checks.dataset import check_categories, check_has_boxes
from ..distributed import same_buffers, together
from ..errors import ConfigError, ModelError
from ..objective.class_weights import weights_for_evaluation
from ..objective.classifier import is_classifier
from ..registry import ATTACKS
from ..report import RobustnessReport, figure_of
from ..utils.acceleration import Acceleration
from ..utils.models import bare_model
from ..utils.store import Store, StorePart
from ..utils.validation import positive_int
from .attack_pass import AttackPass
from .attacker import Attacker, ids_of
from .box_analysis import BENIGN, BoxAnalysis
from .ensemble import check_readable
from .gallery import Gallery
from .original_pixels import PicturePipeline
from .outcome import Outcome
from .progress import Progress
from .subset import restrict_metrics


class AttackEvaluation:
    """What the validation and the test loop share.

    The loops differ in the names of their hooks and in ``val_step``/``test_step``,
    which do the same in mmengine.

    Attributes:
        attacker: attacks single images, and predicts.
        analysis: of the boxes of all passes, if the loop analyses any.
        records: what was found out so far.
        benign_records: the part of it without attack.
        benign_metrics: the metrics without attack.
        benign_boxes: detections on the clean images by image id, if there is an
            analysis; None where they cannot be read.
        gallery: pictures for the report, if the loop writes one.
        speed: how attacks are accelerated.
    """

    runner: Runner
    dataloader: Any
    evaluator: Evaluator
    fp16: bool
    stage: str
    speed: Acceleration
    gallery: Gallery | None = None

    def _set_up(
        self,
        attacks: dict[str, Any],
        seed: int,
        gt_frame: str,
        num_images: int | None,
        save_adv: str | None,
        space: str = 'input',
        quantize: bool = False,
        speed: Mapping[str, Any] | None = None,
        attack_batch_size: int = 1,
    ) -> None:
        self.speed = Acceleration.read(speed)
        self.attack_batch_size = positive_int(attack_batch_size, 'attack_batch_size')
        _check_attacks(attacks)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f'seed={seed!r} must be a whole number of at least 0.')
        self.attacks: dict[str, Attack | Ensemble] = {
            name: ATTACKS.build(attack) if isinstance(attack, dict) else attack
            for name, attack in attacks.items()
        }
        if BENIGN in self.attacks:
            raise ConfigError(f'no attack can be called {BENIGN!r}: rename it.')
        # Not all of an attack's settings need be in its description.
        self.attack_configs = {k: v for k, v in attacks.items() if isinstance(v, dict)}
        self.seed = seed
        self.save_adv = save_adv
        self.space, self.quantize = space, quantize
        dataset = self.dataloader.dataset
        if num_images is not None:
            restrict_metrics(self.evaluator, dataset)
        if gt_frame not in ('auto', 'original', 'input'):
            raise ConfigError(
                f"gt_frame={gt_frame!r} is unknown: choose 'auto', 'original', 'input'."
            )
        if space not in ('input', 'original'):
            raise ConfigError(
                f"space={space!r} is unknown: choose 'input' to attack the network's "
                "input, or 'original' to attack the picture before it is resized."
            )
        self.gt_frame = gt_frame
        self.pixels: PicturePipeline | None = None
        if not self.attacks:
            return
        if is_distributed() and not getattr(self.dataloader.sampler, 'round_up', True):
            raise ConfigError(
                'results are put together from equal shares of the processes: set '
                'sampler.round_up=True in the test dataloader.'
            )
        check_has_boxes(dataset, 'attack')
        check_categories(self.evaluator.metrics, dataset)
        if is_classifier(bare_model(self.runner.model)):
            self._refuse_for_classifiers()
        else:
            if gt_frame == 'auto':
                self.gt_frame = gt_frame_of(dataset)
            if space == 'original' or quantize:
                self.pixels = PicturePipeline(dataset)

    def _refuse_for_classifiers(self) -> None:
        if any(isinstance(attack, Ensemble) for attack in self.attacks.values()):
            raise ConfigError(
                'the ensemble is for detectors: use autoattack for a classifier.'
            )
        if self.space != 'input' or self.quantize:
            raise ConfigError(
                'original pixels and pictures of 8 bits are for detectors: leave '
                'space and quantize out for a classifier.'
            )
        if self.attack_batch_size > 1:
            raise ConfigError(
                'attack_batch_size is for detectors: a classifier attacks the images '
                'of a batch together anyway, so set batch_size of the dataloader.'
            )

    @together()
    def run(self) -> dict[str, float]:
        """Runs all passes.

        Returns:
            Benign metrics under their own names, and those of each attack behind the
            attack's name, like ``pgd/coco/bbox_mAP``.
        """
        runner, stage = self.runner, self.stage
        runner.call_hook(f'before_{stage}')
        runner.call_hook(f'before_{stage}_epoch')
        model = bare_model(runner.model)
        # After the hook, which may have put averaged weights and buffers in place.
        with same_buffers(model), self.speed.prepared(model):
            metrics, report = self._run()
        runner.call_hook(f'after_{stage}_epoch', metrics=metrics)
        runner.call_hook(f'after_{stage}')
        if self.attacks:
            print_log('\n' + report.table(), logger='current')
        return metrics

    def _run(self) -> tuple[dict[str, float], RobustnessReport]:
        runner = self.runner
        runner.model.eval()
        for metric in self.evaluator.metrics:
            metric.results.clear()  # of a run that was interrupted, in a notebook say
        notes = self._weight_classes()
        self.attacker = Attacker(
            runner.model,
            self.seed,
            self.gt_frame,
            self.fp16,
            self.pixels,
            self.space,
            self.quantize,
            self.speed,
            self.attack_batch_size,
        )
        notes += self._check_objectives()
        notes += self._check_groups()
        if self.attacks:
            notes += self.speed.notes()
        report = RobustnessReport.start(
            runner, self.dataloader.dataset, self.seed, notes
        )
        report.space = self.space
        report.environment['speed'] = self.speed.describe()
        report.environment['attack_batch_size'] = self.attacker.attack_batch_size
        self.analysis = self._analysis()
        self.records = self._open_records()
        self.gallery = self._gallery()
        report.checks += self._try_out() or []  # None on other processes
        metrics = self._benign_pass(report)
        progress = Progress(list(self.attacks), len(self.dataloader), runner.logger)
        for name, attack in self.attacks.items():
            self._save(report, complete=False)
            result = AttackPass(self, name, attack).run(progress)
            report.attacks.append(result)
            metrics.update({f'{name}/{key}': v for key, v in result.metrics.items()})
        self._compare(report)
        if self.analysis:
            # The search may take minutes, and nothing is to be lost meanwhile.
            self._save(report, complete=False)
            self.analysis.gather_problems()
            if len(self.attacks) > 1:
                report.worst_case = self.analysis.worst_case()
            report.checks += self.analysis.problems
        self._save(report, complete=True)
        self.records.remove()
        return metrics, report

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

    def _open_records(self) -> Store:
        """Store that are lost when the process ends."""
        return Store(None, {})

    def _gallery(self) -> Gallery | None:
        """Pictures are for the report."""
        return None

    def _try_out(self) -> list[str]:
        """Trials on some images before all passes; sentences for the report."""
        return []

    def _save(self, report: RobustnessReport, complete: bool) -> None:
        """Only the test loop keeps a report."""

    # ------------------------------------------------------------------------ passes

    def _benign_pass(self, report: RobustnessReport) -> dict[str, float]:
        """The evaluation without attack."""
        self.benign_records: StorePart = self.records.part(BENIGN, {})
        self.benign_boxes: dict[Any, Detections | None] = {}
        for index, data_batch in enumerate(self.dataloader):
            self.run_iter(index, data_batch)
        if any(isinstance(attack, Ensemble) for attack in self.attacks.values()):
            check_readable(self.benign_boxes)  # not hours later
        self.benign_records.wait_for_others()
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.benign_metrics = report.benign = dict(metrics)
        if self.analysis:
            found = [each for each in self.benign_boxes.values() if each is not None]
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
        check_batch(data_batch)
        for part, keys in self.parts(idx, data_batch):
            record = self.benign_records.read(keys, part['inputs'])
            if record is None:
                with models_own():
                    outcome = Outcome(self.attacker.predict(part))
                self.benign_records.write(keys, outcome.pack(part), part['inputs'])
            else:
                outcome = Outcome.unpack(record, part)
            outputs += outcome.outputs
            if self.gallery:
                for key, output in zip(keys, outcome.outputs, strict=True):
                    self.gallery.remember(key, output)
        if self.analysis:
            for output in outputs:
                self.benign_boxes[output.get('img_id')] = self.analysis.read(output)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        runner.call_hook(
            f'after_{stage}_iter',
            batch_idx=idx,
            data_batch=data_batch,
            outputs=outputs,
        )

    def _compare(self, report: RobustnessReport) -> None:
        """Judges the passes by each other."""
        benign = figure_of(report.benign, report.benign_boxes)
        found = comparison_verdicts(benign, report.attacks)
        for result in report.attacks:
            result.checks += found.get(result.name, [])

    # ------------------------------------------------------------------ before passes

    def parts(self, index: int, data_batch: dict) -> Iterator[tuple[dict, list]]:
        """The parts of a batch, and what the records of their images are called."""
        rank, world_size = get_dist_info()
        for number, part in enumerate(self.attacker.parts(data_batch)):
            keys = ids_of(part)
            if None in keys or not self._unique_ids:
                place = f'{rank} of {world_size}, batch {index}, part {number}'
                keys = [f'{place}, image {each}' for each in range(len(keys))]
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
        """The attacks, with the members of an ensemble in its place."""
        found: list[Attack] = []
        for attack in self.attacks.values():
            if isinstance(attack, Ensemble):
                found += attack.members.values()
            else:
                found.append(attack)
        return found

    def _check_objectives(self) -> list[str]:
        """Refuses attacks that the model has no losses for; ensembles go without."""
        loader, notes = self.dataloader, []
        plain = [a for a in self.attacks.values() if a.members is None]
        notes += self.attacker.check(plain, loader.dataset, loader.collate_fn)
        for ensemble in self.attacks.values():
            if not isinstance(ensemble, Ensemble):
                continue
            for name, member in list(ensemble.members.items()):
                try:
                    self.attacker.check([member], loader.dataset, loader.collate_fn)
                except ModelError:
                    raise  # it would fail all the others, too
                except ConfigError as error:
                    ensemble.leave_out(name, str(error))
                    notes.append(f'the ensemble goes without {name}: {error}')
        return notes

    def _check_groups(self) -> list[str]:
        """Sees whether images can be attacked together, if they are to be."""
        loader = self.dataloader
        if not self.attacks or self.attack_batch_size == 1:
            return []
        return self.attacker.check_groups(loader.dataset, loader.collate_fn)

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


def _check_attacks(attacks: Any) -> None:
    """Refuses what is no set of named attacks."""
    if not isinstance(attacks, dict):
        raise ConfigError(
            f'attacks={attacks!r} must be a dict from names to attacks, like '
            "dict(pgd=dict(type='mmrobust.PGD', eps=4))."
        )
    for name, attack in attacks.items():
        if not isinstance(name, str) or not name or set(name) & set('/\\\0'):
            raise ConfigError(
                f'{name!r} in attacks is no name of an attack: it names keys and files.'
            )
        if not isinstance(attack, (dict, Attack, Ensemble)):
            raise ConfigError(
                f'{name}={attack!r} in attacks must be a dict, like '
                "dict(type='mmrobust.PGD', eps=4)."
            )
