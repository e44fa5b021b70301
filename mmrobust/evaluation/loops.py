"""Attack evaluation: one benign pass, then one pass per attack, in one loop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..registry import LOOPS
from ..report import RobustnessReport, device_name, package_versions
from ..utils.models import state_digest
from ..utils.store import Store
from ..utils.validation import whole_number
from .attack_evaluation import AttackEvaluation
from .box_analysis import BoxAnalysis
from .images import annotations_digest
from .preparation import try_out
from .visualization import Gallery


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

    def _start_analysis(self) -> BoxAnalysis | None:
        if not self.attacks or self.attacker.classifier:
            return None
        if any(attack.members for attack in self.attacks.values()):
            return super()._start_analysis()
        return BoxAnalysis.maybe(self.dataloader.dataset, self.seed)

    def _open_records(self) -> Store:
        if not self.resume or not self.attacks:
            return Store(None, {})
        cfg, dataset = self.runner.cfg, self.dataloader.dataset
        loader = cfg.get('test_dataloader') or {}
        run = {
            'weights_sha256': state_digest(self.attacker.model),
            'model': cfg.get('model'),
            # The runner merges it into the model, where no weight tells of it.
            'data_preprocessor': cfg.get('data_preprocessor'),
            'dataset': loader.get('dataset') if isinstance(loader, dict) else None,
            'annotations_sha256': annotations_digest(dataset),
            'num_images': len(dataset),
            'seed': self.seed,
            'gt_frame': self.gt_frame,
            'fp16': self.fp16,
            'speed': self.speed.describe(),
            'space': self.space,
            'quantize': self.quantize,
            'attack_batch_size': self.attack_batch_size,
            'versions': package_versions(),
            'device': device_name(self.attacker.device),
        }
        return Store(Path(self.report).with_suffix('.records'), run)

    def _start_gallery(self) -> Gallery | None:
        if not self.attacks or not self.gallery_images:
            return None
        return Gallery(self.runner.visualizer, self.gallery_images, self.gt_frame)

    @master_only
    def _try_out(self) -> list[str]:
        if not self.analysis:
            return []
        return try_out(
            self.attacks,
            self.attacker,
            self.images,
            self.analysis,
            self.records.part,
            self.check_images,
        )

    def _save(self, report: RobustnessReport, complete: bool) -> None:
        pictures = self.gallery.pictures() if self.gallery else []
        report.write(self.report, complete, pictures)
