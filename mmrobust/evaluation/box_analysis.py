"""Analyses the boxes or masks of all passes: worst case, kinds of errors, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from mmengine.dist import collect_results, get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from ..analysis import (
    EDGES,
    SCORE_THR,
    Detections,
    GroundTruth,
    MatchTable,
    calibration,
    class_matches,
    coco_ap,
    count_errors,
    deployed_thresholds,
    image_score,
    match_detections,
    patch_figures,
)
from ..errors import ConfigError
from ..objective import has_boxes
from .pass_tables import BENIGN, PassTables

SIZES = ('small', 'medium', 'large')
# Square pixels; what lies on a border belongs to both, as in pycocotools.
AREAS = ((0, 32**2), (32**2, 96**2), (96**2, math.inf))

# What each analysis reads of a prediction, by its name; None where it cannot.
ReadDetections: TypeAlias = dict[str, Detections | None]


def measured_types(metrics: Sequence[Any]) -> list[str]:
    """Returns by what an evaluator judges detections, of ``IOU_TYPES``.

    Boxes are first, and also what metrics stand for that do not tell: only those of
    COCO's kind do, which have ``metric=['bbox', 'segm']`` in their configs, and the one
    of panoptic quality.
    """
    told = [_told(each) for each in metrics]
    kinds = {kind for each in told for kind in each}
    others = [kind for kind in ('segm', 'panoptic') if kind in kinds]
    no_boxes = told and all(each and set(each) <= set(others) for each in told)
    return [*([] if no_boxes else ['bbox']), *others]


def _told(metric: Any) -> tuple[str, ...]:
    if any(kind.__name__ == 'CocoPanopticMetric' for kind in type(metric).__mro__):
        return ('panoptic',)
    return tuple(getattr(metric, 'metrics', ()))


class BoxAnalysis(PassTables):
    """Keeps the boxes of every pass, and analyses them on the main process.

    It only adds to a report: detections that it cannot read (rotated boxes, say) end
    the analysis of their pass and not the evaluation.

    Args:
        dataset: the evaluated dataset; gives classes and ground truth.
        seed: of intervals and of the search for the worst case.
        iou_type: ``'bbox'`` for boxes, ``'segm'`` for masks in their place.

    Attributes:
        thresholds: on the scores of each class, by the benign pass: see
            :func:`mmrobust.analysis.deployed_thresholds`.
        problems: sentences for the report's checks.

    Raises:
        ConfigError: if the ground truth is not of upright boxes, or an object lacks its
            mask.
    """

    def __init__(self, dataset: Any, seed: int = 0, iou_type: str = 'bbox') -> None:
        self._start(dataset, seed, iou_type)
        self.name = 'masks' if iou_type == 'segm' else 'boxes'
        self.truths = ground_truth(dataset, iou_type)
        self._truth_of: dict[Any, Any] = {each.img_id: each for each in self.truths}

    def _start(self, dataset: Any, seed: int, iou_type: str) -> None:
        super().__init__(seed)
        self.iou_type = iou_type
        self.classes = tuple(dataset.metainfo['classes'])
        self.num_classes = len(self.classes)
        # Boxes of the last pass and of the benign one, where they could be matched.
        self._matched: list[Detections] | None = None
        self._benign: list[Detections] | None = None
        self.thresholds: list[float] = []
        self.problems: list[str] = []

    @classmethod
    def maybe(
        cls, dataset: Any, seed: int, iou_type: str = 'bbox'
    ) -> BoxAnalysis | None:
        """Makes one if the dataset has boxes and classes to compare with."""
        if not hasattr(dataset, 'get_data_info') or not len(dataset):
            return None
        info = dataset.get_data_info(0)
        has_boxes = {'img_id', 'height', 'width', 'instances'} <= set(info)
        if not has_boxes or not getattr(dataset, 'metainfo', {}).get('classes'):
            return None
        try:
            return cls(dataset, seed, iou_type)
        except ConfigError as error:
            names = {'bbox': 'Boxes', 'segm': 'Masks', 'panoptic': 'Segments'}
            print_log(f'{names[iou_type]} are not analysed: {error}', logger='current')
            return None

    def read(self, output: BaseDataElement) -> Detections | None:
        """Returns a prediction's boxes or masks, if it has any that can be analysed."""
        if 'pred_instances' not in output:
            return None
        found = output.pred_instances
        masks = self.iou_type == 'segm'
        if not ('masks' in found if masks else has_boxes(found)):
            self._note(f'the model detects no {self.name}')
            return None
        try:
            finite = _finite(output, self.iou_type)
            if finite is not output:
                title = self.name.capitalize()
                self._note(f'some detections are not finite, and left out of {title}')
            return Detections.from_sample(finite, self.iou_type)
        except ConfigError as error:
            self._note(str(error))
            return None

    def score(self, output: BaseDataElement) -> float:
        """Returns an image's score, from 0 to 1; 0 where no boxes can be read."""
        found = self.read(output)
        if found is None or found.img_id not in self._truth_of:
            return 0.0
        try:
            return self.score_of(found)
        except ConfigError as error:
            self._note(str(error))
            return 0.0

    def score_of(self, found: Detections) -> float:
        """Returns the score of an image's boxes, from 0 to 1."""
        truth = self._truth_of[found.img_id]
        return image_score(truth, found, self.num_classes, self.iou_type)

    def gather_problems(self) -> None:
        """Puts the sentences of all processes together, on the main one."""
        gathered = collect_results([self.problems], get_world_size(), device='cpu')
        for problems in gathered or ():
            for problem in problems:
                self._note(problem)

    def with_objects(self, count: int) -> list[int]:
        """Returns the places of the first images with objects, crowds not counted."""
        places = [i for i, truth in enumerate(self.truths) if not truth.ignore.all()]
        return places[:count]

    def match(self, found: Sequence[Detections]) -> MatchTable | None:
        """Matches the boxes of a pass, from all processes, with the ground truth.

        Returns:
            None on other processes than the main one, and if an image is missing.
        """
        size, self._matched = len(self.truths), None
        everywhere = collect_results(list(found), size, device='cpu')
        # Samplers repeat images so that all processes have as many.
        if not is_main_process() or len({f.img_id for f in everywhere}) < size:
            return None
        table = match_detections(
            self.truths, everywhere, self.num_classes, iou_type=self.iou_type
        )
        self._matched = everywhere
        return table

    def keep(self, name: str, found: Sequence[Detections]) -> None:
        """Lets a pass take part in the worst case, if all of its images can be read."""
        try:
            table = self.match(found)
        except ConfigError as error:
            self._note(f'{self.name} of {name} are not analysed: {error}')
            return
        if table is not None:
            self.tables[name] = table

    def finish(
        self, name: str, found: Sequence[Detections], keep: bool = True
    ) -> dict[str, Any] | None:
        """Ends a pass.

        Args:
            name: of the pass.
            found: what this process's images gave.
            keep: whether the pass takes part in the worst case.

        Returns:
            mAP with its interval, what the attack took from the benign mAP,
            counts of errors, mAP at IoU 0.5, by object size and by class, of the benign
            pass how many objects each of them has; None on other processes than the
            main one, and for models without boxes.
        """
        try:
            return self._finish(name, found, keep)
        except ConfigError as error:
            self._note(f'{self.name} of {name} are not analysed: {error}')
            return None

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _finish(
        self, name: str, found: Sequence[Detections], keep: bool
    ) -> dict[str, Any] | None:
        table = self.match(found)
        if table is None or self._matched is None:
            return None
        if name == BENIGN:
            self._benign = self._matched
        errors = count_errors(
            self.truths, self._matched, self.num_classes, iou_type=self.iou_type
        )
        return {
            **self.enter(name, table, keep),
            'errors': {'score_thr': SCORE_THR, **asdict(errors)},
            **({'objects': self._objects()} if name == BENIGN else {}),
            **self._by_size_and_class(self._matched),
            **self._calibration(name),
        }

    def patches(self, patches: Mapping[Any, Any]) -> dict[str, Any] | None:
        """Compares the pass that ended last with the benign one, at the same patches.

        Args:
            patches: see :func:`mmrobust.analysis.patch_figures`.

        Returns:
            How many images have a patch and how many objects each bin of distance has,
            and of both passes ``mAP``, that of the bins and the false detections on
            patches; None on other processes than the main one, and for models without
            boxes.
        """
        passes = {'benign': self._benign, 'attack': self._matched}
        result: dict[str, Any] = {'edges': list(EDGES)}
        for name, found in passes.items():
            if found is None:
                return None
            figures = patch_figures(self.truths, found, patches, self.num_classes)
            result |= {'images': figures.images, 'objects': list(figures.objects)}
            result[name] = {
                'mAP': figures.mean_ap,
                'by_distance': list(figures.near),
                'on_patch': figures.on_patch,
            }
        return result

    def _objects(self) -> dict[str, Any]:
        """Counts the objects but for crowds, by COCO's sizes and by classes."""
        areas = np.concatenate([each.areas[~each.ignore] for each in self.truths])
        labels = np.concatenate([each.labels[~each.ignore] for each in self.truths])
        counts = np.bincount(labels, minlength=self.num_classes).tolist()
        ends = zip(SIZES, AREAS, strict=True)
        return {
            'all': len(labels),
            'sizes': {
                size: int(((areas >= low) & (areas <= high)).sum())
                for size, (low, high) in ends
            },
            'classes': dict(zip(self.classes, counts, strict=True)),
        }

    def _by_size_and_class(self, found: Sequence[Detections]) -> dict[str, Any]:
        summary = coco_ap(self.truths, found, self.num_classes, self.iou_type)
        metrics, classes = summary.metrics, summary.per_class.tolist()
        sizes = {size: metrics[f'mAP_{size[0]}'] for size in SIZES}
        by_class = dict(zip(self.classes, classes, strict=True))
        return {
            **_known({'mAP_50': metrics['mAP_50']}),
            'sizes': _known(sizes),
            'classes': _known(by_class),
        }

    def _calibration(self, name: str) -> dict[str, Any]:
        """Returns LRP and LaECE, by the thresholds of the benign pass."""
        found = self._matched or []
        matches = class_matches(
            self.truths, found, self.num_classes, iou_type=self.iou_type
        )
        if name == BENIGN:
            self.thresholds = deployed_thresholds(matches)
        if not self.thresholds:
            return {}
        result: dict[str, Any] = {'calibration': calibration(matches, self.thresholds)}
        if name == BENIGN:
            known = [each if math.isfinite(each) else None for each in self.thresholds]
            result['thresholds'] = dict(zip(self.classes, known, strict=True))
        return result


def _known(values: dict[str, float]) -> dict[str, float | None]:
    """Returns None instead of NaN, where there is no object."""
    return {key: None if math.isnan(each) else each for key, each in values.items()}


def read_by(
    analyses: Mapping[str, BoxAnalysis], output: BaseDataElement
) -> ReadDetections:
    """Returns what every analysis reads of a prediction."""
    return {name: analysis.read(output) for name, analysis in analyses.items()}


def _finite(output: BaseDataElement, iou_type: str) -> BaseDataElement:
    """Drops boxes or scores that are not finite, as attacks can make detectors give."""
    found = output.pred_instances
    kept = found.scores.isfinite()
    if iou_type == 'bbox':
        boxes = getattr(found.bboxes, 'tensor', found.bboxes)
        kept = boxes.isfinite().all(-1) & kept
    elif 'mask_scores' in found:
        kept = found.mask_scores.isfinite()
    if bool(kept.all()):
        return output
    return type(output)(metainfo=output.metainfo, pred_instances=found[kept])


def ground_truth(dataset: Any, iou_type: str = 'bbox') -> list[GroundTruth]:
    """Returns the dataset's objects; mmdet keeps no areas but those of boxes."""
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return [GroundTruth.from_data_info(info, iou_type) for info in infos]
