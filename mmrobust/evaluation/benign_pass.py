"""Makes the pass without attack, and scores passes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from ..batch import check_batch, check_range
from ..checks import figures_disagree, qualities_disagree
from ..errors import doing
from ..region import padding_share
from ..report import RobustnessReport
from ..utils.store import StorePart
from .adversarial_images import dumps_renamed
from .attacker import Attacker, Outcome
from .box_analysis import BoxAnalysis, ReadDetections, read_by
from .images import EvaluatedImages, left_clean, padding_of
from .load import load_of, summary
from .pass_tables import BENIGN
from .visualization import Gallery
from .voc_figures import VOCFigures


class Scores:
    """Computes metrics and analyses of detections, of one pass after the other.

    Args:
        evaluator: of the loop.
        analyses: by name, like ``'boxes'``; there may be none.
        size: images of the dataset.
        voc: the figures of the evaluator's VOCMetric, if it has one.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        analyses: Mapping[str, BoxAnalysis],
        size: int,
        voc: VOCFigures | None = None,
    ) -> None:
        self.evaluator, self.voc = evaluator, voc
        self.analyses = analyses
        self.size = size
        self.expected: list[str] | None = None  # metrics of the first computed pass
        self._found: list[ReadDetections] = []
        for metric in evaluator.metrics:
            metric.results.clear()  # of a run that was interrupted, in a notebook say

    def add(
        self, outputs: Sequence[BaseDataElement], data_batch: Any
    ) -> list[ReadDetections]:
        """Takes in the predictions on a batch.

        Returns:
            What every analysis reads of each of them.
        """
        ids = ', '.join(str(output.get('img_id')) for output in outputs[:3])
        with doing(f'handing the predictions on image {ids} to the metrics'):
            self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        found = [read_by(self.analyses, output) for output in outputs]
        self._found += found
        return found

    def compute(
        self, name: str, keep: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ends a pass; ``keep`` tells whether it takes part in the worst case.

        Returns:
            Its metrics, and by name of the analyses what :meth:`.BoxAnalysis.finish`
            says; under ``'evaluator'`` what :meth:`.VOCFigures.finish` does.
        """
        if self.voc:
            self.voc.read(self.size)
        files = nullcontext() if name == BENIGN else dumps_renamed(self.evaluator, name)
        with files, doing(f'computing the metrics of {name}'):
            metrics = dict(self.evaluator.evaluate(self.size))
        if self.expected is None:
            self.expected = list(metrics)
        told: dict[str, Any] = {}
        if self.voc:
            told['evaluator'] = self.voc.finish(name, metrics, keep)
        for key, analysis in self.analyses.items():
            read = [each[key] for each in self._found]
            known = [each for each in read if each is not None]
            told[key] = analysis.finish(name, known, keep)
        self._found = []
        return metrics, told


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
        # By image id, where there are analyses.
        self.found: dict[Any, ReadDetections] = {}
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
                images = zip(keys, outcome.outputs, part['inputs'], strict=True)
                for image in images:
                    self.gallery.remember(*image)
        found = self.scores.add(outputs, data_batch)
        if self.scores.analyses:
            ids = [output.get('img_id') for output in outputs]
            self.found.update(zip(ids, found, strict=True))
        return outputs

    def finish(self, report: RobustnessReport) -> None:
        """Waits for the other processes."""
        self.records.wait_for_others()
        report.dataset['padding'] = padding_of(self._padding)
        report.benign_load = summary(self._loads)
        report.checks += self._notes


def enter_benign(report: RobustnessReport, scores: Scores) -> dict[str, Any]:
    """Puts the figures without attack into a report, and returns the metrics."""
    metrics, told = scores.compute(BENIGN)
    report.benign = dict(metrics)
    report.benign_boxes, report.benign_masks = told.get('boxes'), told.get('masks')
    report.benign_panoptic = told.get('panoptic')
    report.benign_evaluator = told.get('evaluator')
    found = [
        *figures_disagree(metrics, report.benign_boxes),
        *figures_disagree(metrics, report.benign_masks, 'segm'),
        *qualities_disagree(metrics, report.benign_panoptic),
    ]
    if not metrics:
        # CocoMetric's answer to no detection at all.
        found = ['the benign pass gave no metric: the model detects nothing']
    for text in found:
        report.checks.append(text)
        print_log(text, logger='current', level=logging.WARNING)
    return metrics
