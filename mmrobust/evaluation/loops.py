"""Attack evaluation: one benign pass, then one pass per attack, in one loop."""

from __future__ import annotations

import os
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..registry import LOOPS
from ..utils.validation import whole_number
from .attack_evaluation import AttackEvaluation


@LOOPS.register_module()
class AttackValLoop(AttackEvaluation, ValLoop):
    """mmengine's ValLoop plus one pass per attack, see :class:`.AttackEvaluation`."""

    stage = 'val'


@LOOPS.register_module()
class AttackTestLoop(AttackEvaluation, TestLoop):
    """mmengine's TestLoop plus one pass per attack and a report.

    Args:
        runner: the runner.
        dataloader: the data loader or its config; its pipeline has to load boxes.
        evaluator: the evaluator or its config.
        report: path of the JSON report, by default ``robustness.json`` in the work
            directory; a Markdown twin is written beside it. It is rewritten after
            every pass.
        resume: keep what was found out image by image in ``<report>.records`` until
            the report is complete, and go on from there after an interruption. Several
            processes then need a disk that they share.
        check_images: images on which the evaluation itself is tried out, see
            :func:`mmrobust.checks.examine`; 0 for none. By default 4.
        gallery: images in the report's page, per attack; 0 for none. By default 4.
        **settings: see :class:`.AttackEvaluation`.
    """

    stage = 'test'
    # As many as trials need that judge several images together.
    default_check_images = 4
    default_gallery = 4

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        report: str | None = None,
        resume: bool = True,
        check_images: int | None = None,
        gallery: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(runner, dataloader, evaluator, **settings)
        if check_images is None:
            check_images = self.default_check_images
        self.check_images = whole_number(check_images, 'check_images')
        gallery = self.default_gallery if gallery is None else gallery
        self.gallery_images = whole_number(gallery, 'gallery')
        self.report = report or os.path.join(runner.work_dir, 'robustness.json')
        # Its twins have other endings, and nothing else may be overwritten by mistake.
        name = isinstance(self.report, str) and self.report.endswith('.json')
        if not name or os.path.isdir(self.report):
            raise ConfigError(f'report={report!r} must be a .json file.')
        self.resume = resume
