"""Analyses the panoptic segmentations of all passes: PQ, its intervals, worst case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.dist import collect_results, is_main_process
from mmengine.structures import BaseDataElement

from ..analysis import (
    Interval,
    PanopticCounts,
    PanopticTable,
    Segments,
    panoptic_quality,
    pq_difference,
    pq_interval,
    worst_case_pq,
    worst_case_pq_intervals,
)
from ..errors import ConfigError
from .box_analysis import BoxAnalysis
from .pass_tables import BENIGN
from .segments import segments_of


class PanopticAnalysis(BoxAnalysis):
    """Keeps what every image adds to the panoptic quality of a pass.

    Figures are in percent, as those of CocoPanopticMetric.

    Args:
        dataset: as mmdet's ``CocoPanopticDataset``, with ``segments_info`` and
            ``seg_map_path`` of each image.
        seed: see :class:`.BoxAnalysis`.
        iou_type: ``'panoptic'``.

    Raises:
        ConfigError: if the dataset has no panoptic ground truth.
    """

    figure = 'PQ'
    name = 'panoptic'

    def __init__(self, dataset: Any, seed: int = 0, iou_type: str = 'panoptic') -> None:
        self._start(dataset, seed, iou_type)
        things = dataset.metainfo.get('thing_classes')
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        if things is None or not all(info.get('seg_map_path') for info in infos):
            raise ConfigError(
                'the dataset has no panoptic ground truth (thing_classes, '
                'seg_map_path and segments_info, as CocoPanopticDataset has them).'
            )
        self._things = np.array([name in things for name in self.classes])
        self._truth_of = {info['img_id']: info for info in infos}

    def read(self, output: BaseDataElement) -> PanopticCounts | None:  # type: ignore[override]
        """Returns what a prediction adds to PQ, if it is a panoptic segmentation."""
        if 'pred_panoptic_seg' not in output:
            self._note('the model predicts no panoptic segmentation')
            return None
        img_id = output.get('img_id')
        try:
            truth = self._truth(img_id)
            ids, known, labels = segments_of(output, self.num_classes)
            found = Segments.of(ids, known, labels, np.zeros(len(known), bool))
            return PanopticCounts.of(img_id, truth, found, self.num_classes)
        except ConfigError as error:
            self._note(str(error))
            return None

    def score_of(self, found: PanopticCounts) -> float:  # type: ignore[override]
        """Returns the panoptic quality of an image by itself, from 0 to 1."""
        return found.quality / 100

    def with_objects(self, count: int) -> list[int]:
        """Returns the places of the first images with things, crowds not counted."""
        infos = enumerate(self._truth_of.values())
        return [i for i, info in infos if info['instances']][:count]

    def match(self, found: Sequence[Any]) -> PanopticTable | None:  # type: ignore[override]
        """Puts the images of all processes together; see :class:`.BoxAnalysis`."""
        everywhere = collect_results(list(found), len(self._truth_of), device='cpu')
        if not is_main_process() or len({f.img_id for f in everywhere}) < len(
            self._truth_of
        ):
            return None
        return PanopticTable.of(everywhere)

    def write(self, path: Path) -> None:
        """Removes the file of an earlier run, which is for tables of detections."""
        if is_main_process():
            path.unlink(missing_ok=True)

    def mean_intervals(self, names: Sequence[Sequence[str]]) -> None:
        """Gives no interval of means over corruptions."""

    def value(self, table: Any) -> float:
        """Returns the PQ of a table."""
        return float(table.quality)

    def interval(self, table: Any) -> Interval:
        """Returns it with an interval."""
        return pq_interval(table, seed=self.seed)

    def lowest(
        self, tables: Sequence[Any], rounds: int
    ) -> tuple[np.ndarray, float, dict[str, Any]]:
        """Returns the combination of lowest PQ that is found, and its PQ."""
        return *worst_case_pq(tables, seed=self.seed, max_rounds=rounds), {}

    def lowest_intervals(
        self, tables: Sequence[Any], assignment: np.ndarray
    ) -> tuple[Interval, Interval]:
        """Returns intervals of that PQ and of its fall from the first table."""
        return worst_case_pq_intervals(tables, assignment, seed=self.seed)

    def restrict(self, table: Any, images: np.ndarray) -> Any:
        """Returns the table of some of the images."""
        return table.restrict(images)

    def _finish(
        self, name: str, found: Sequence[Any], keep: bool
    ) -> dict[str, Any] | None:
        table = self.match(found)
        if table is None:
            return None
        if keep:
            self.tables[name] = table
        counts = table.counts.sum(axis=0)
        classes = panoptic_quality(counts[:, None])[:, 0]
        matched, wrong, missed = map(int, counts[:, 1:].sum(axis=0))
        result = {
            'PQ': asdict(self.interval(table)),
            **_parts(counts, ('SQ', 'RQ')),
            'things': _parts(counts[self._things]),
            'stuff': _parts(counts[~self._things]),
            'segments': {'matched': matched, 'false': wrong, 'missed': missed},
            'classes': dict(zip(self.classes, map(_known, classes), strict=True)),
        }
        if name != BENIGN and BENIGN in self.tables:
            drop = pq_difference(self.tables[BENIGN], table, seed=self.seed)
            result['drop'] = asdict(drop)
        return result

    def _truth(self, img_id: Any) -> Segments:
        info = self._truth_of.get(img_id)
        if info is None:
            raise ConfigError(f'the dataset has no image {img_id!r}.')
        try:
            colours = mmcv.imread(info['seg_map_path'])
        except FileNotFoundError as error:
            raise ConfigError(
                f'{info["seg_map_path"]} does not exist: is data_prefix.seg right?'
            ) from error
        ids = colours.astype(np.int64) @ np.array([65536, 256, 1])  # from BGR
        segments = info['segments_info']
        labels = np.array([each['category'] for each in segments], dtype=np.int64)
        things = np.array([bool(each['is_thing']) for each in segments], dtype=bool)
        # mmdet takes a crowd of things for no thing.
        crowd = self._things[labels] & ~things
        known = np.array([each['id'] for each in segments], dtype=np.int64)
        return Segments.of(ids, known, labels, crowd)


def _parts(
    counts: np.ndarray, names: Sequence[str] = ('PQ', 'SQ', 'RQ')
) -> dict[str, float | None]:
    """Returns qualities of classes by name; None if none of the classes occurs."""
    found = zip(('PQ', 'SQ', 'RQ'), panoptic_quality(counts), strict=True)
    return {key: _known(each) for key, each in found if key in names}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
