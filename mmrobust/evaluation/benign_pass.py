"""Makes the pass without attack, and scores passes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from ..analysis import Detections
from ..batch import check_batch, check_range
from ..checks import figures_disagree
from ..errors import doing
from ..region import padding_share
from ..report import RobustnessReport
from ..utils.store import StorePart
from .adversarial_images import dumps_renamed
from .attacker import Attacker, Outcome
from .box_analysis import BENIGN, BoxAnalysis
from .images import EvaluatedImages, left_clean, padding_of
from .load import load_of, summary
from .visualization import Gallery


class Scores:
    """Computes metrics and the analysis of boxes, of one pass after the other."""

    def __init__(
        self, evaluator: Evaluator, analysis: BoxAnalysis | None, size: int
    ) -> None:
        self.evaluator = evaluator
        self.analysis = analysis
        self.size = size  # images of the dataset
        self.expected: list[str] | None = None  # metrics of the first computed pass
        self._boxes: list[Detections | None] = []
        for metric in evaluator.metrics:
            metric.results.clear()  # of a run that was interrupted, in a notebook say

    def add(
        self, outputs: Sequence[BaseDataElement], data_batch: Any
    ) -> list[Detections | None]:
        """Takes in the predictions on a batch.

        Returns:
            Their boxes, where there is an analysis and it can read them.
        """
        ids = ', '.join(str(output.get('img_id')) for output in outputs[:3])
        with doing(f'handing the predictions on image {ids} to the metrics'):
            self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        if self.analysis is None:
            return []
        boxes = [self.analysis.read(output) for output in outputs]
        self._boxes += boxes
        return boxes

    def compute(
        self, name: str, keep: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Ends a pass; ``keep`` tells whether it takes part in the worst case.

        Returns:
            Its metrics, and what :meth:`.BoxAnalysis.finish` says.
        """
        files = nullcontext() if name == BENIGN else dumps_renamed(self.evaluator, name)
        with files, doing(f'computing the metrics of {name}'):
            metrics = dict(self.evaluator.evaluate(self.size))
        if self.expected is None:
            self.expected = list(metrics)
        boxes = None
        if self.analysis:
            known = [each for each in self._boxes if each is not None]
            boxes = self.analysis.finish(name, known, keep)
        self._boxes = []
        return metrics, boxes


class BenignPass:
    """Predicts on the images as they are, every image of a detector by itself.

    As it is under attack, so that the two can be compared whatever the batch size, and
    the figures do not depend on the number of processes.
    """

    def __init__(
        self,
        images: EvaluatedImages,
        attacker: Attacker,
        records: StorePart,
        scores: Scores,
        gallery: Gallery | None,
    ) -> None:
        self.images, self.attacker = images, attacker
        self.records, self.scores, self.gallery = records, scores, gallery
        # By image id, where there is an analysis of boxes.
        self.boxes: dict[Any, Detections | None] = {}
        self._padding: dict[Any, float] = {}  # shares by name
        self._loads: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []

    def predict(self, index: int, data_batch: dict) -> list[BaseDataElement]:
        """Predicts on a batch, from records or freshly, and scores it."""
        check_batch(data_batch)
        check_range(data_batch['inputs'])
        if not index:
            self._notes = left_clean(data_batch)
        outputs: list[BaseDataElement] = []
        for part, keys in self.images.parts(index, data_batch):
            record = self.records.read(keys, part['inputs'])
            if record is None:
                outcome = Outcome(self.attacker.predict(part))
                if self.attacker.measures_load:
                    outcome.load = load_of(self.attacker, part)
                self.records.write(keys, outcome.pack(part), part['inputs'])
            else:
                outcome = Outcome.unpack(record, part)
            outputs += outcome.outputs
            if outcome.load:
                self._loads['|'.join(map(str, keys))] = outcome.load
            shares = map(padding_share, part['data_samples'])
            self._padding.update(zip(keys, shares, strict=True))
            if self.gallery:
                for key, output in zip(keys, outcome.outputs, strict=True):
                    self.gallery.remember(key, output)
        if found := self.scores.add(outputs, data_batch):
            ids = [output.get('img_id') for output in outputs]
            self.boxes.update(zip(ids, found, strict=True))
        return outputs

    def finish(self, report: RobustnessReport) -> None:
        """Waits for the other processes."""
        self.records.wait_for_others()
        report.dataset['padding'] = padding_of(self._padding)
        report.benign_load = summary(self._loads)
        report.checks += self._notes


def enter_benign(report: RobustnessReport, scores: Scores) -> dict[str, Any]:
    """Puts the figures without attack into a report, and returns the metrics."""
    metrics, report.benign_boxes = scores.compute(BENIGN)
    report.benign = dict(metrics)
    found = figures_disagree(metrics, report.benign_boxes)
    if not metrics:
        # CocoMetric's answer to no detection at all.
        found = ['the benign pass gave no metric: the model detects nothing']
    for text in found:
        report.checks.append(text)
        print_log(text, logger='current', level=logging.WARNING)
    return metrics
