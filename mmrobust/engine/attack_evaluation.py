"""One benign pass, then one pass per attack: what both evaluation loops share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import is_distributed
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..attacks import Attack
from ..batch import (
    attack_samples,
    count_boxes_outside,
    float_images,
    gt_frame_of,
    image_id,
    split_batch,
    with_images,
)
from ..classification import (
    ClassifierOracle,
    check_labels,
    classifier_samples,
    is_classifier,
    make_oracle,
)
from ..detection_score import DetectionOracle
from ..errors import ConfigError
from ..objective import loss_mode
from ..registry import ATTACKS
from ..report import AttackResult, RobustnessReport
from ..seeding import attack_generator, derive_seed, seeded
from .adversaries.base import bare_model
from .box_analysis import BENIGN, BoxAnalysis, CollectBoxesHook
from .counting import weights_for_evaluation
from .preflight import check_has_boxes
from .progress import Progress
from .saving import AdversarialImages, dumps_renamed
from .subset import restrict_metrics


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
        self.attacks: dict[str, Attack] = {
            name: ATTACKS.build(attack) if isinstance(attack, dict) else attack
            for name, attack in attacks.items()
        }
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
        self._outside = 0
        if not self.attacks:
            return
        if is_distributed() and not getattr(self.dataloader.sampler, 'round_up', True):
            raise ConfigError(
                'losses synchronise the processes, so all need the same number of '
                'images: set sampler.round_up=True in the test dataloader.'
            )
        check_has_boxes(dataset, 'attack')
        if gt_frame == 'auto' and not is_classifier(bare_model(self.runner.model)):
            self.gt_frame = gt_frame_of(dataset)

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
        notes = self._weight_classes()
        notes += self._check_objectives()
        report = RobustnessReport.start(
            runner, self.dataloader.dataset, self.seed, notes
        )
        analysis = self._analysis()
        collector = CollectBoxesHook(analysis) if analysis else None
        if collector:
            runner.register_hook(collector)
        for index, data_batch in enumerate(self.dataloader):
            self.run_iter(index, data_batch)  # type: ignore[attr-defined]
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        report.benign = dict(metrics)
        if analysis and collector:
            runner.hooks.remove(collector)
            report.benign_boxes = analysis.finish(BENIGN)
        if not metrics:
            # CocoMetric's answer to no detection at all.
            text = 'the benign pass gave no metric: the model detects nothing'
            report.checks.append(text)
            print_log(text, logger='current', level=logging.WARNING)
        progress = Progress(list(self.attacks), len(self.dataloader), runner.logger)
        for name, attack in self.attacks.items():
            self._save(report, complete=False)
            result = self._attack_pass(name, attack, report.benign, progress, analysis)
            report.attacks.append(result)
            metrics.update({f'{name}/{key}': v for key, v in result.metrics.items()})
        if analysis:
            # The search may take minutes, and nothing is to be lost meanwhile.
            self._save(report, complete=False)
            report.worst_case = analysis.worst_case()
            report.checks += analysis.problems
        self._save(report, complete=True)
        runner.call_hook(f'after_{stage}_epoch', metrics=metrics)
        runner.call_hook(f'after_{stage}')
        if self.attacks:
            print_log('\n' + report.table(), logger='current')
        return metrics

    def _analysis(self) -> BoxAnalysis | None:
        """Only the test loop analyses."""
        return None

    def _save(self, report: RobustnessReport, complete: bool) -> None:
        """Only the test loop keeps a report."""

    def _attack_pass(
        self,
        name: str,
        attack: Attack,
        benign: dict[str, float],
        progress: Progress,
        analysis: BoxAnalysis | None,
    ) -> AttackResult:
        result = AttackResult(name, attack.describe())
        saver = AdversarialImages.maybe(self.save_adv, name, attack.describe())
        self._outside = 0
        progress.start(name)
        for index, data_batch in enumerate(self.dataloader):
            adversarial = self._perturb(attack, data_batch, result)
            outputs = self._predict(index, data_batch, adversarial, name)
            if analysis:
                analysis.add(outputs)
            if saver:
                saver.save(data_batch['data_samples'], adversarial)
            progress.update(index + 1)
        result.seconds = progress.finish()
        with dumps_renamed(self.evaluator, name):
            count = len(self.dataloader.dataset)
            result.metrics = dict(self.evaluator.evaluate(count))
        if analysis:
            result.boxes = analysis.finish(name)
        missing = [key for key in benign if key not in result.metrics]
        if missing:
            # CocoMetric gives no numbers at all when nothing is detected any more.
            result.metrics.update(dict.fromkeys(missing, 0.0))
            result.checks.append('no detection is left; missing metrics count as 0')
        if self._outside:
            result.checks.append(
                f'{self._outside} boxes lie outside their image: is the frame of the '
                f'boxes ({self.gt_frame}) right?'
            )
        return result.sum_over_processes()

    def _perturb(
        self, attack: Attack, data_batch: dict, result: AttackResult
    ) -> list[Tensor]:
        """Attacks every image independently of the others.

        A detector gets them one by one, see :class:`LossOracle`; a classifier keeps
        the images of a batch apart by itself.
        """
        model = bare_model(self.runner.model)
        device = next(model.parameters()).device
        adversarial: list[Tensor] = []
        with loss_mode(model):
            for part in (
                [data_batch] if is_classifier(model) else split_batch(data_batch)
            ):
                samples = self._samples(part, device)
                oracle = self._oracle(attack, part, samples)
                seeds = [
                    derive_seed(self.seed, image_id(sample))
                    for sample in part['data_samples']
                ]
                with seeded(seeds[0], device):
                    images = float_images(part, device)
                    draws = [attack_generator(seed) for seed in seeds]
                    found = attack.perturb(oracle, images, draws)
                if isinstance(oracle, ClassifierOracle):
                    # An attack that mends an image has not made the model robust.
                    wrong = oracle.misclassified(images)
                    pairs = zip(wrong, images, found, strict=True)
                    found = [clean if lost else image for lost, clean, image in pairs]
                adversarial += found
                result.forwards += oracle.forwards
                result.backwards += oracle.backwards
        return adversarial

    def _oracle(
        self, attack: Attack, data_batch: dict, samples: Sequence[BaseDataElement]
    ) -> Any:
        """What answers the attack: the losses, or the detector's final output."""
        model = bare_model(self.runner.model)
        if attack.reads == 'detections' and not is_classifier(model):
            return DetectionOracle(model, data_batch, samples)
        return make_oracle(model, data_batch, samples, attack.objective)

    def _samples(self, data_batch: dict, device: torch.device) -> list[BaseDataElement]:
        """The ground truth as losses need it."""
        if is_classifier(bare_model(self.runner.model)):
            return classifier_samples(data_batch['data_samples'], device)
        samples = attack_samples(data_batch['data_samples'], device, self.gt_frame)
        self._outside += count_boxes_outside(samples)
        return samples

    @torch.no_grad()
    def _predict(
        self, index: int, data_batch: dict, images: Sequence[Tensor], name: str
    ) -> list[BaseDataElement]:
        """The stock prediction step on other images, with the original samples."""
        attacked = with_images(data_batch, images)
        with autocast(enabled=self.fp16):
            outputs = self.runner.model.test_step(attacked)
        self.evaluator.process(data_samples=outputs, data_batch=attacked)
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
        return outputs

    def _check_objectives(self) -> list[str]:
        """Asks for every named objective once, before a pass that may take hours.

        Of a classifier also for the others, whose output and labels may not fit.

        Returns:
            Sentences for the report's checks.

        Raises:
            ConfigError: if the model does not have the losses that an attack names.
        """
        meta = getattr(self.dataloader.dataset, 'metainfo', {})
        for attack in self.attacks.values():
            names = meta.get('thing_classes', meta.get('classes'))
            attack.objective.class_names = names
        model = bare_model(self.runner.model)
        classifier = is_classifier(model)
        named = [
            a
            for a in self.attacks.values()
            if classifier or a.reads == 'detections' or a.objective.terms is not None
        ]
        if not named:
            return []
        batch = self.dataloader.collate_fn([self.dataloader.dataset[0]])
        device = next(model.parameters()).device
        with loss_mode(model), seeded(self.seed, device):
            samples = self._samples(batch, device)
            for attack in named:
                oracle = self._oracle(attack, batch, samples)
                oracle.value(float_images(batch, device))
                if isinstance(oracle, ClassifierOracle):
                    scores = oracle.scores
                    check_labels(self.dataloader.dataset, scores.shape[1])
                    if (scores >= 0).all() and (scores.sum(1) - 1).abs().max() < 1e-4:
                        return [
                            'the outputs look like probabilities and not like logits, '
                            'which hides gradients: take the softmax out of the head'
                        ]
        return []

    def _weight_classes(self) -> list[str]:
        """Weights classes for the objectives that need it; returns notes."""
        waiting = [a for a in self.attacks.values() if a.objective.needs_class_weights]
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
