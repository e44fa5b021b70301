"""Gives the mAP of mmdet's VOCMetric its intervals and its worst case."""

from __future__ import annotations

from typing import Any

from mmdet.evaluation import VOCMetric
from mmengine.dist import collect_results
from mmengine.evaluator import Evaluator

from ..analysis import MatchTable, match_as_voc
from .pass_tables import PassTables

# More than the order of detections of equal score, of which the metric has none, makes.
_LEAST_GAP = 0.01
_MODES = {'11points': '11 levels of recall', 'area': 'all of recall'}


class VOCFigures(PassTables):
    """Matches what a VOCMetric has taken in, by its own rules.

    Args:
        metric: of the evaluator.
        dataset: the evaluated one, with ids of its images and classes.
        seed: of intervals and of the search for the worst case.

    Attributes:
        key: the metric's name among those of the evaluator.
        means: what it measures, in words.
        problems: sentences for the report's checks.
    """

    def __init__(self, metric: VOCMetric, dataset: Any, seed: int) -> None:
        super().__init__(seed)
        self._metric = metric
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        self._ids = [info['img_id'] for info in infos]
        self._num_classes = len(dataset.metainfo['classes'])
        self.key = '/'.join(filter(None, (metric.prefix, 'mAP')))
        ious = ', '.join(f'{iou:g}' for iou in metric.iou_thrs)
        mode = _MODES[metric.eval_mode]
        self.means = f"VOC's AP at IoU {ious} over {mode}, mean over classes"
        self.problems: list[str] = []
        self._table: MatchTable | None = None

    @classmethod
    def maybe(cls, evaluator: Evaluator, dataset: Any, seed: int) -> VOCFigures | None:
        """Makes one if the evaluator has a VOCMetric of mAP, and none of COCO's kind.

        Args:
            evaluator: of the loop.
            dataset: the evaluated one.
            seed: see above.
        """
        metrics = evaluator.metrics
        # Another class may compute something else, and those of COCO's kind come first.
        plain = [each for each in metrics if type(each) is VOCMetric]
        if len(plain) != 1 or hasattr(evaluator, 'dataset_prefixes'):
            return None
        if plain[0].metric != 'mAP' or plain[0].scale_ranges is not None:
            return None
        if any(getattr(each, 'metrics', None) for each in metrics):
            return None
        return cls(plain[0], dataset, seed)

    def read(self, size: int) -> None:
        """Takes a pass from the metric, before that computes its figure and forgets it.

        Args:
            size: images of the dataset.
        """
        found = collect_results(self._metric.results, size, device='cpu')
        self._table = None
        if found is not None:  # on the main process
            self._table = match_as_voc(
                found,
                self._ids,
                self._num_classes,
                self._metric.iou_thrs,
                self._metric.eval_mode,
            )

    def finish(
        self, name: str, metrics: dict[str, Any], keep: bool
    ) -> dict[str, Any] | None:
        """Ends a pass.

        Args:
            name: of the pass.
            metrics: of the evaluator.
            keep: whether the pass takes part in the worst case.

        Returns:
            ``name`` of the figure, what it ``means``, and :meth:`.PassTables.enter`'s
            intervals; None on other processes than the main one.
        """
        if self._table is None:
            return None
        found = self.enter(name, self._table, keep)
        # Detections of equal score have no order in the metric.
        value, around = float(metrics[self.key]), found['mAP']
        if abs(value - around['estimate']) > _LEAST_GAP:
            self.problems.append(
                f'{self.key} of {name} is {value:.3f}, and its interval is made of '
                f'matches that give {around["estimate"]:.3f}: do not trust it.'
            )
        around['estimate'] = value
        around['low'] = min(value, around['low'])
        around['high'] = max(value, around['high'])
        return {'name': self.key, 'means': self.means, **found}
