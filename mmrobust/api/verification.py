"""Verifies a claim: a part of a report's images attacked again, and compared."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ..analysis import MatchTable, mean_ap, read_tables, restrict
from ..errors import ConfigError
from ..report import package_versions
from ..utils.configs import merge_options
from ..utils.files import file_sha256, write_atomically
from .evaluate import evaluate
from .report import Report

# By how much a figure of another machine may differ: rounding turns searches.
TOLERANCE = 0.02
NAME = 'verification.json'
# What a report says of the figure that compares passes, to the loop's option.
_JUDGED_BY = {'boxes': 'bbox', 'masks': 'segm', 'evaluator': 'auto'}


@dataclass(frozen=True)
class Verified:
    """A pass of a claim, on the images that were attacked again.

    Attributes:
        name: of the pass, ``'benign'`` or an attack's.
        claimed: mAP of these images in the report's tables: COCO's of boxes or of
            masks, or VOC's, by which the report compares passes.
        found: the same mAP of them now.
    """

    name: str
    claimed: float
    found: float

    def overstated(self, tolerance: float) -> bool:
        """Returns whether less is left than was claimed, by more than a tolerance."""
        return not self.found >= self.claimed - tolerance


@dataclass(frozen=True)
class Verification:
    """What became of a claim.

    Attributes:
        passes: those that were made again.
        image_ids: of the images.
        tolerance: see :meth:`Verified.overstated`.
        report_sha256: of the claim.
        notes: what differs from the claim without being a figure.
    """

    passes: Sequence[Verified]
    image_ids: Sequence[Any]
    tolerance: float
    report_sha256: str | None
    notes: Sequence[str]

    @property
    def holds(self) -> bool:
        """Whether no pass leaves less than was claimed."""
        return not any(each.overstated(self.tolerance) for each in self.passes)

    def write(self, path: Path) -> None:
        """Writes it as JSON, with the date and the versions of the stack."""
        content = {
            'holds': self.holds,
            **asdict(self),
            'date': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
            'versions': package_versions(),
        }
        write_atomically(path, json.dumps(content, indent=2, default=str) + '\n')


def verify(
    claim: Report,
    checkpoint: str | os.PathLike,
    num_images: int = 16,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    work_dir: str | os.PathLike = 'work_dirs/verification',
    cfg_options: Mapping[str, Any] | None = None,
) -> Verification:
    """Attacks some of a report's images again, by the config that is in the report.

    Args:
        claim: a report, beside which its ``.npz`` lies.
        checkpoint: the weights that it is about.
        num_images: how many images, at most those of the report.
        seed: of the choice of images, which whoever makes a claim should not know.
        tolerance: mAP by which a figure may be lower than claimed; rounding differs
            between machines.
        work_dir: of the new evaluation, and of ``verification.json``.
        cfg_options: settings of the config that are others here, like ``data_root``.

    Raises:
        ConfigError: if the weights or the images are not those of the claim, or its
            tables are of another mAP than those of the new evaluation.
    """
    notes = _weights(claim, os.fspath(checkpoint))
    tables = read_tables(claim.path.with_suffix('.npz'))
    cfg = Config.fromstring(claim.content['config_text'], '.py')
    merge_options(cfg, dict(cfg_options or {}))
    attacks = dict(cfg.test_cfg.get('attacks') or {})
    known = next(iter(tables.values())).img_ids
    count = min(num_images, len(known))
    places = sorted(np.random.default_rng(seed).permutation(len(known))[:count])
    chosen = [known[place] for place in places]
    cfg.test_dataloader.dataset = _only(cfg.test_dataloader.dataset, chosen, cfg)
    kept = ('seed', 'space', 'gt_frame', 'fp16', 'speed', 'attack_batch_size')
    settings = {key: cfg.test_cfg[key] for key in kept if key in cfg.test_cfg}
    settings['judged_by'] = _JUDGED_BY.get(claim.judged_by, 'auto')
    report = evaluate(
        cfg,
        checkpoint,
        attacks,
        work_dir=work_dir,
        settings={**settings, 'check_images': 0, 'gallery': 0},
    )
    found = read_tables(report.path.with_suffix('.npz'))
    passes = []
    for name, table in found.items():
        if name in tables:
            old = restrict(tables[name], np.isin(np.arange(len(known)), places))
            _check_same_figure(old, table)
            passes.append(Verified(name, mean_ap(old), mean_ap(table)))
    if len(passes) < 2:
        raise ConfigError('the claim has no attack that could be made again.')
    notes += _versions(claim)
    result = Verification(
        passes, chosen, tolerance, file_sha256(str(claim.path)), notes
    )
    result.write(Path(work_dir) / NAME)
    return result


def _check_same_figure(old: MatchTable, new: MatchTable) -> None:
    """Makes sure that the mAP of two tables of the same images is the same figure."""
    facts = [
        {
            'levels of recall': table.points,
            'IoU thresholds': len(table.hit),
            'classes': table.num_classes,
            'objects': len(table.gt_label),
        }
        for table in (old, new)
    ]
    for what, claimed in facts[0].items():
        if (found := facts[1][what]) != claimed:
            raise ConfigError(
                f'the claim cannot be compared with the new evaluation: its tables '
                f'have {claimed} {what} on these images, and the new ones {found}.'
            )


def _weights(claim: Report, checkpoint: str) -> list[str]:
    """Makes sure that the weights are those of the claim."""
    wanted, found = claim.content.get('checkpoint_sha256'), file_sha256(checkpoint)
    if wanted is None:
        return ['the claim does not say which weights it is about']
    if found is not None and found != wanted:
        raise ConfigError(
            f'{checkpoint} has the sha256 {found}, and the claim is about {wanted}.'
        )
    return []


def _only(dataset: Mapping[str, Any], chosen: Sequence[Any], cfg: Config) -> Any:
    """Returns the config of a dataset with the chosen images alone."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    built = DATASETS.build({**deepcopy(dict(dataset)), 'indices': None})
    built.full_init()
    ids = [built.get_data_info(index).get('img_id') for index in range(len(built))]
    # JSON makes other keys of some, and text is what both have in common.
    places = {str(each): index for index, each in enumerate(ids)}
    missing = [each for each in chosen if str(each) not in places]
    if missing:
        raise ConfigError(
            f'the dataset has no image {missing[0]!r}, which the claim has: is it the '
            'same data?'
        )
    return {**dict(dataset), 'indices': [places[str(each)] for each in chosen]}


def _versions(claim: Report) -> list[str]:
    """Says which packages have other versions than those of the claim."""
    old, new = claim.content.get('versions') or {}, package_versions()
    differing = [name for name in old if new.get(name) != old[name]]
    return [f'{name} {new.get(name)} in place of {old[name]}' for name in differing]
