"""Attack evaluation: one benign pass, then one pass per attack, in one loop."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
from .attack_evaluation import AttackEvaluation
from .box_analysis import BoxAnalysis
from .images import annotations_digest, choose_images, enough_for_groups
from .preparation import try_out
from .visualization import Gallery


@LOOPS.register_module()
class AttackValLoop(AttackEvaluation, ValLoop):
    """mmengine's ValLoop plus one pass per attack.

    Benign metrics keep their names, so that ``save_best`` works as before; attacked
    ones are prefixed, like ``pgd/coco/bbox_mAP``.

    Args:
        runner: the runner.
        dataloader: the data loader or its config; its pipeline has to load boxes.
        evaluator: the evaluator or its config.
        attacks: name to attack config, for instance
            ``dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=10))``.
        seed: seed of every random draw; each image's draws depend on it and on the
            image's id alone.
        gt_frame: ``'auto'`` reads the frame of the boxes off the pipeline;
            ``'original'`` or ``'input'`` set it.
        num_images: evaluate on this many images, a fixed choice by ``seed``.
        save_adv: folder for the adversarial images, without loss; none by default.
        fp16: predict under autocast, which attacks do not follow.
        speed: options of :class:`.Acceleration`, for attacks alone, for
            instance ``dict(autocast='bfloat16')``.
        attack_batch_size: how many images of a detector share the network's passes in
            an attack, where their inputs are of one shape and the model allows it.
            Losses stay those of single images; what is found is the same up to
            rounding, which depends on the other images. 1 for bit by bit the same
            whatever the batches.

    Raises:
        ConfigError: for settings or data that cannot give a valid attack.
    """

    stage = 'val'

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        attacks: dict[str, Any] | None = None,
        seed: int = 0,
        gt_frame: str = 'auto',
        num_images: int | None = None,
        save_adv: str | None = None,
        fp16: bool = False,
        speed: Mapping[str, Any] | None = None,
        attack_batch_size: int = 1,
    ) -> None:
        loader = choose_images(dataloader, num_images, seed)
        loader = enough_for_groups(loader, attack_batch_size if attacks else 1)
        super().__init__(runner, loader, evaluator, fp16=fp16)
        self._set_up(
            attacks or {},
            seed,
            gt_frame,
            num_images,
            save_adv,
            speed=speed,
            attack_batch_size=attack_batch_size,
        )


@LOOPS.register_module()
class AttackTestLoop(AttackEvaluation, TestLoop):
    """mmengine's TestLoop plus one pass per attack and a report.

    Args:
        runner: the runner.
        dataloader: see :class:`AttackValLoop`.
        evaluator: see :class:`AttackValLoop`.
        attacks: see :class:`AttackValLoop`.
        seed: see :class:`AttackValLoop`.
        gt_frame: see :class:`AttackValLoop`.
        num_images: see :class:`AttackValLoop`.
        save_adv: see :class:`AttackValLoop`.
        report: path of the JSON report, by default ``robustness.json`` in the work
            directory; a Markdown twin is written beside it. It is rewritten after
            every pass.
        resume: keep what was found out image by image in ``<report>.records`` until
            the report is complete, and go on from there after an interruption. Several
            processes then need a disk that they share.
        space: ``'input'`` attacks the network's input, as papers do; ``'original'``
            attacks the picture on disk, before the pipeline resizes it.
        quantize: also round every attacked image to 8 bits, write it as a picture,
            read it back and score it through the unchanged pipeline.
        check_images: images on which the evaluation itself is tried out, see
            :func:`mmrobust.checks.examine`; 0 for none. By default 4.
        gallery: images in the report's page, per attack. By default 4.
        fp16: see :class:`AttackValLoop`.
        speed: see :class:`AttackValLoop`.
        attack_batch_size: see :class:`AttackValLoop`.
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
        attacks: dict[str, Any] | None = None,
        seed: int = 0,
        gt_frame: str = 'auto',
        num_images: int | None = None,
        save_adv: str | None = None,
        report: str | None = None,
        resume: bool = True,
        space: str = 'input',
        quantize: bool = False,
        check_images: int | None = None,
        gallery: int | None = None,
        fp16: bool = False,
        speed: Mapping[str, Any] | None = None,
        attack_batch_size: int = 1,
    ) -> None:
        loader = choose_images(dataloader, num_images, seed)
        loader = enough_for_groups(loader, attack_batch_size if attacks else 1)
        super().__init__(runner, loader, evaluator, fp16=fp16)
        self._set_up(
            attacks or {},
            seed,
            gt_frame,
            num_images,
            save_adv,
            space,
            quantize,
            speed,
            attack_batch_size,
        )
        self.check_images = _count(
            check_images, 'check_images', self.default_check_images
        )
        self.gallery_images = _count(gallery, 'gallery', self.default_gallery)
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


def _count(value: int | None, name: str, default: int) -> int:
    """A number of images, 0 among them, or the default."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f'{name}={value!r} must be a whole number, or 0 for none.')
    return value
