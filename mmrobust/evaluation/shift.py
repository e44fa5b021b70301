"""Natural shift: what a detector is worth on other datasets of the same classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.runner import Runner

from ..checks import check_classes, check_has_boxes, check_metrics
from ..errors import ConfigError, doing
from ..utils.models import bare_model
from ..utils.store import Store
from .attacker import Attacker
from .benign_pass import BenignPass, Scores
from .images import EvaluatedImages, annotations_digest, choose_images, restrict_metrics
from .pass_tables import BENIGN
from .voc_figures import VOCFigures

# Where datasets of mmdet look for pictures: COCO's, and VOC's.
_PICTURES = ('img', 'sub_data_root')


@dataclass(frozen=True)
class Shift:
    """A dataset like the evaluated one, of other pictures.

    Args:
        name: in the report.
        ann_file: its annotations, in the format of the evaluated dataset.
        prefix: the folder of its pictures (VOC's: that of JPEGImages and Annotations).
    """

    name: str
    ann_file: str
    prefix: str


def read_shifts(given: Mapping[str, str] | Iterable[str], taken: Any) -> list[Shift]:
    """Reads shifts as the command line and configs give them.

    Args:
        given: ``'NAME=ANN_FILE,PREFIX'``, or a mapping from names to the rest.
        taken: names of passes.

    Raises:
        ConfigError: for text of another form, or a name that there is already.
    """
    if isinstance(given, Mapping):
        given = [f'{name}={text}' for name, text in given.items()]
    found: list[Shift] = []
    for text in given:
        name, _, rest = str(text).partition('=')
        ann_file, _, prefix = rest.partition(',')
        if not (name and ann_file and prefix) or set(name) & set('/\\'):
            raise ConfigError(
                f'shift {text!r} cannot be read: give NAME=ANN_FILE,PREFIX, as in '
                'night=night/annotations.json,night/images.'
            )
        if name in taken or name == BENIGN or name in [each.name for each in found]:
            raise ConfigError(
                f'shift {name!r} has the name of another pass: rename it.'
            )
        found.append(Shift(name, ann_file, prefix))
    return found


class ShiftedData:
    """The data and metrics of a shift, checked before anything is computed.

    Args:
        shift: what there is.
        runner: with the config of the evaluated dataset and metrics.
        num_images: evaluate on at most so many images, a fixed choice by ``seed``.
        seed: of the choice and of intervals.
        trained_on: classes that the checkpoint names.

    Raises:
        ConfigError: if files are missing, classes are others, or the evaluated dataset
            is a wrapper of some.
    """

    def __init__(
        self,
        shift: Shift,
        runner: Runner,
        num_images: int | None,
        seed: int,
        trained_on: Any,
    ) -> None:
        self.shift, self.seed = shift, seed
        loader = deepcopy(dict(runner.cfg.test_dataloader))
        loader['dataset'] = self._dataset(loader['dataset'])
        with doing(f'reading the dataset of shift {shift.name}'):
            whole: Any = MMENGINE_DATASETS.build(deepcopy(loader['dataset']))
            whole.full_init()
        if not len(whole):
            raise ConfigError(
                f'shift {shift.name!r} has no image: check {shift.ann_file}.'
            )
        _check_pictures(shift, whole)
        most = None if num_images is None else min(num_images, len(whole))
        chosen: Any = choose_images(loader, most, seed)
        self.dataloader = runner.build_dataloader(chosen)
        self.dataset: Any = self.dataloader.dataset
        self.evaluator = self._evaluator(runner)
        if most is not None:
            restrict_metrics(self.evaluator, self.dataset)
        check_has_boxes(self.dataset, 'shift')
        metrics = self.evaluator.metrics
        self.notes = [
            *check_metrics(self.evaluator, self.dataset),
            *check_classes(bare_model(runner.model), self.dataset, metrics, trained_on),
        ]

    def run(
        self, attacker: Attacker, records: Store, evaluated: Scores
    ) -> dict[str, Any]:
        """Predicts on all images.

        Args:
            attacker: of the model.
            records: of the evaluation.
            evaluated: scores of the evaluated dataset; the thresholds of its benign
                pass are those of this one.

        Returns:
            The entry in the report: ``name``, ``ann_file``, ``images``, ``metrics``,
            and what the analyses say.
        """
        analyses = {
            name: own
            for name, other in evaluated.analyses.items()
            if (own := type(other).maybe(self.dataset, self.seed, other.iou_type))
        }
        for name, own in analyses.items():
            own.thresholds = evaluated.analyses[name].thresholds
        images = EvaluatedImages(self.dataloader, whole_batches=False)
        voc = None
        if analyses and evaluated.voc:
            voc = VOCFigures.maybe(self.evaluator, self.dataset, self.seed)
        scores = Scores(self.evaluator, analyses, len(self.dataset), voc)
        settings = [self.shift.ann_file, annotations_digest(self.dataset)]
        part = records.part(f'shift {self.shift.name}', settings)
        run = BenignPass(images, attacker, part, scores, None)
        for index, data_batch in enumerate(self.dataloader):
            run.predict(index, data_batch)
        part.wait_for_others()
        metrics, told = scores.compute(self.shift.name)
        if voc and evaluated.voc:
            evaluated.voc.problems += voc.problems
        return {
            'name': self.shift.name,
            'ann_file': self.shift.ann_file,
            'images': len(self.dataset),
            'metrics': metrics,
            **told,
        }

    def _dataset(self, config: Any) -> dict[str, Any]:
        prefixes = config.get('data_prefix') or {}
        own = [
            key for key in _PICTURES if isinstance(prefixes, dict) and key in prefixes
        ]
        if 'ann_file' not in config or not own:
            raise ConfigError(
                f'shift {self.shift.name!r} takes the place of ann_file and '
                f'data_prefix of the test dataset, and {config.get("type")} has not '
                'both: test on a plain dataset.'
            )
        prefix = {**prefixes, own[0]: os.path.abspath(self.shift.prefix)}
        changed = {'data_root': '', 'data_prefix': prefix}
        changed['ann_file'] = os.path.abspath(self.shift.ann_file)
        return {**config, **changed}

    def _evaluator(self, runner: Runner) -> Evaluator:
        given = runner.cfg.test_evaluator
        metrics = [
            dict(each) for each in ([given] if isinstance(given, dict) else given)
        ]
        for metric in metrics:
            if metric.get('ann_file'):
                metric['ann_file'] = os.path.abspath(self.shift.ann_file)
        evaluator: Evaluator = runner.build_evaluator(metrics)
        evaluator.dataset_meta = self.dataset.metainfo
        return evaluator


def _check_pictures(shift: Shift, dataset: Any) -> None:
    """Refuses missing pictures before hours of computing on the others."""
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    paths = [info.get('img_path', '') for info in infos]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ConfigError(
            f'{len(missing)} of the {len(paths)} pictures of shift {shift.name!r} do '
            f'not exist, such as {missing[0]}: check its prefix.'
        )
