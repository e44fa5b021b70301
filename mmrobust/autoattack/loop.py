"""The test loop: the config's own evaluation, then AutoAttack shard by shard."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import Runner, TestLoop
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from ..distributed import same_buffers
from ..errors import ConfigError, doing
from ..evaluation import AdversarialImages, Progress, choose_images, dumps_renamed
from ..objective import check_labels
from ..registry import LOOPS
from ..utils.models import bare_model, frozen, state_digest
from ..utils.seeding import derive_seed, seeded
from ..utils.store import wait_until
from ..utils.validation import positive_int
from . import package
from .images import ImageList, as_batch, at_resolution, choose_by_file
from .members import Ball, Ensemble, read_balls
from .report import AutoAttackReport, summarise
from .shard import Logits, ShardStore, attack_shard


@dataclass
class _View:
    """The images at one resolution.

    ``name`` and what follows it are known once the first image was looked at.
    """

    loader: DataLoader
    images: ImageList
    note: str
    name: str = ''
    shape: tuple[int, ...] = ()
    num_classes: int = 0


@dataclass
class _Pass:
    """A threat at one resolution.

    ``build`` makes the package's AutoAttack with the members that can run, anew for
    every shard, and ``settings`` and ``notes`` say what it is.
    """

    name: str
    view: _View
    ball: Ball
    build: Callable[[], tuple[Any, list[str]]]
    settings: dict[str, Any]
    notes: list[str]


@LOOPS.register_module()
class AutoAttackTestLoop(TestLoop):
    """mmengine's TestLoop plus AutoAttack (arXiv 2003.01690) on a classifier.

    Images are attacked in shards of fixed size. Each shard's results are written as
    soon as they are there, so that an interrupted run goes on where it stopped, and
    several processes share the shards. Robust accuracy is computed here, from a fresh
    forward pass on images that were checked to lie in the threat, not taken from the
    package.

    Args:
        runner: the runner; its model is a classifier that gives logits.
        dataloader: the data loader or its config. All images must have one size.
        evaluator: the evaluator or its config, for the benign pass.
        threats: the norm balls, ``[dict(norm='linf', eps=4)]`` by default; ``eps`` in
            pixel units of 0-255.
        version: ``'standard'`` (default), ``'plus'``, ``'rand'`` or ``'custom'``.
        attacks: members of the custom version, as names, text or dicts: see
            :meth:`mmrobust.autoattack.members.Member.read`.
        resolutions: sides of square images; by default the pipeline's own images.
        seed: seed of every member, the same in every shard.
        num_images: evaluate on this many images, a fixed choice by ``seed``.
        image_ids: file that lists the images to evaluate on.
        shard_size: images that are attacked together, the batch size of the
            dataloader by default. Random draws, and with them the last digits of the
            result, depend on it.
        save_adv: folder for the adversarial images, without loss; none by default.
        report: path of the JSON report, by default ``robustness.json`` in the work
            directory; a Markdown twin and the folder of shards lie beside it.
        fp16: predict under autocast in the benign pass; the attack never does.

    Raises:
        ConfigError: for settings, models or data that AutoAttack cannot work with.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        threats: Sequence[dict[str, Any]] | None = None,
        version: str | None = None,
        attacks: Sequence[Any] | None = None,
        resolutions: Sequence[int] | None = None,
        seed: int = 0,
        num_images: int | None = None,
        image_ids: str | None = None,
        shard_size: int | None = None,
        save_adv: str | None = None,
        report: str | None = None,
        fp16: bool = False,
    ) -> None:
        package.load_package()
        self.balls = read_balls(threats)
        self.ensemble = Ensemble.read(version, attacks)
        self.seed = seed
        self.save_adv = save_adv and os.path.abspath(save_adv)
        self.report = report or os.path.join(runner.work_dir, 'robustness.json')
        if num_images is not None and image_ids is not None:
            raise ConfigError('num_images and image_ids exclude each other.')
        sides = [None] if resolutions is None else list(resolutions)
        if not sides or len(set(sides)) < len(sides):
            raise ConfigError(
                f'resolutions={resolutions!r} is empty or names one twice.'
            )
        _refuse_detectors(runner.model)
        loaders, notes = [], []
        for side in sides:
            loader, note = dataloader, 'images as the test pipeline of the config'
            if side is not None:
                loader, note = at_resolution(loader, side)
            if image_ids is not None:
                loader = choose_by_file(loader, image_ids)
            else:
                loader = choose_images(loader, num_images, seed)
            loaders.append(loader)
            notes.append(note)
        super().__init__(runner, loaders[0], evaluator, fp16=fp16)
        more = [runner.build_dataloader(each, seed=runner.seed) for each in loaders[1:]]
        pairs = zip([self.dataloader, *more], notes, strict=True)
        self.views = [
            _View(each, ImageList(each.dataset), note) for each, note in pairs
        ]
        if not len(self.views[0].images):
            raise ConfigError(
                'the test dataset is empty: check ann_file and data_root.'
            )
        size = self.dataloader.batch_size or 1 if shard_size is None else shard_size
        self.shard_size = positive_int(size, 'shard_size')
        indices = range(len(self.views[0].images))
        starts = indices[:: self.shard_size]
        self.shards = [indices[start : start + self.shard_size] for start in starts]

    def run(self) -> dict[str, float]:
        """Runs the benign passes and all attacks.

        Returns:
            Benign metrics under their own names (behind the resolution if there are
            several), and robust accuracies in percent like ``autoattack/linf-4``.
        """
        with same_buffers(bare_model(self.runner.model)):
            return self._run()

    def _run(self) -> dict[str, float]:
        runner = self.runner
        runner.call_hook('before_test')
        runner.call_hook('before_test_epoch')
        runner.model.eval()
        model = bare_model(runner.model)
        self.logits = Logits(model)
        self.device = next(model.parameters()).device
        with frozen(model), seeded(self.seed, self.device):
            for view in self.views:
                self._look_at(view)
            # All of them before any work: this refuses what cannot work.
            passes = [self._plan(v, ball) for v in self.views for ball in self.balls]
        self.store = self._open_store(state_digest(model))
        report = self._start_report()
        metrics: dict[str, float] = {}
        for view in self.views:
            benign = self._benign_pass(view)
            report.benign.update(benign)
            metrics.update(benign)
        report.write(self.report, complete=False)
        names = [each.name for each in passes]
        progress = Progress(names, len(self.shards), runner.logger)
        for each in passes:
            view, ball = each.view, each.ball
            with frozen(model), seeded(self.seed, self.device):
                self._attack(each, progress)
            records = self._collect(each)
            result = summarise(each.name, ball, records, each.settings, each.notes)
            report.attacks.append(result)
            report.add(view.name, ball.name, records, several=len(self.views) > 1)
            metrics[each.name] = result.metrics['top1']
            report.write(self.report, complete=False)
        report.write(self.report, complete=True)
        runner.call_hook('after_test_epoch', metrics=metrics)
        runner.call_hook('after_test')
        print_log('\n' + report.table(), logger='current')
        return metrics

    def _look_at(self, view: _View) -> None:
        """Learns the shape of the images and the classes from the first image."""
        images, _ = as_batch([view.images.dataset[0]], self.device, None)
        with torch.no_grad():
            logits = self.logits(images)
        if not torch.isfinite(logits).all():
            raise ConfigError(
                'the model gives NaN or infinite logits: is the checkpoint right?'
            )
        view.shape = tuple(images.shape[1:])
        view.num_classes = logits.shape[1]
        check_labels(view.images.dataset, view.num_classes)
        height, width = view.shape[1:]
        view.name = str(height) if height == width else f'{height}x{width}'

    def _plan(self, view: _View, ball: Ball) -> _Pass:
        """Chooses the members that run, and notes what was changed in them."""
        height, width = view.shape[1:]
        members, notes = self.ensemble.fit(view.num_classes, ball.norm, (height, width))
        build = partial(
            package.build,
            self.logits,
            ball,
            self.ensemble.version,
            members,
            self.seed,
            view.num_classes,
            self.device,
        )
        attack, more = build()
        if self.ensemble.version == 'plus' and ball.norm == 'l1':
            more.append("the package's version plus was not made for l1")
        several = len(self.views) > 1
        name = '/'.join(['autoattack', *[view.name] * several, ball.name])
        settings = package.describe(attack)
        return _Pass(name, view, ball, build, settings, notes + more)

    def _open_store(self, weights: str) -> ShardStore:
        cfg = self.runner.cfg
        loader = cfg.get('test_dataloader') or {}
        dataset = loader.get('dataset') if isinstance(loader, dict) else None
        run = {
            'weights_sha256': weights,
            'model': cfg.get('model'),
            # The runner merges it into the model, where no weight tells of it.
            'data_preprocessor': cfg.get('data_preprocessor'),
            'dataset': dataset,
            'images_sha256': self.views[0].images.sha256,
            'num_images': len(self.views[0].images),
            'version': self.ensemble.version,
            'members': [member.as_text() for member in self.ensemble.members],
            'seed': self.seed,
            'shard_size': self.shard_size,
            'pyautoattack': package.load_package().__version__,
        }
        return ShardStore(Path(self.report).with_suffix('.shards'), run)

    def _start_report(self) -> AutoAttackReport:
        dataset = self.views[0].images.dataset
        report = AutoAttackReport.start(self.runner, dataset, self.seed, [])
        assert isinstance(report, AutoAttackReport)
        report.version = self.ensemble.version
        report.shard_size = self.shard_size
        report.resolutions = [view.note for view in self.views]
        report.labels = {ball.name: ball.label for ball in self.balls}
        report.per_image = str(self.store.folder)
        return report

    def _benign_pass(self, view: _View) -> dict[str, float]:
        """Makes the stock evaluation at one resolution."""
        self.dataloader = view.loader
        for index, batch in enumerate(self.dataloader):
            self.run_iter(index, batch)
        several = len(self.views) > 1
        with dumps_renamed(self.evaluator, view.name) if several else nullcontext():
            metrics = self.evaluator.evaluate(len(view.images))
        return {f'{view.name}/{k}' if several else k: v for k, v in metrics.items()}

    def _attack(self, each: _Pass, progress: Progress) -> None:
        """Attacks this process's shards that have no results yet."""
        view, ball = each.view, each.ball
        rank, world_size = get_dist_info()
        mine = range(rank, len(self.shards), world_size)
        pending = [number for number in mine if self._done(each, number) is None]
        progress.batches = len(pending)
        progress.start(each.name)
        if len(pending) < len(mine):
            self.runner.logger.info(
                f'{len(mine) - len(pending)} of {len(mine)} shards are there already'
            )
        settings = {'norm': ball.norm, 'eps': ball.eps, 'resolution': view.name}
        saver = AdversarialImages.maybe(
            self.save_adv, f'{view.name}/{ball.name}', settings
        )
        batches = view.images.load(
            [self.shards[number] for number in pending], self.dataloader.num_workers
        )
        for done, (number, items) in enumerate(zip(pending, batches, strict=True), 1):
            images, labels = as_batch(items, self.device, view.shape)
            ids = [view.images.ids[index] for index in self.shards[number]]
            # The package seeds what it draws; a model that draws itself starts from
            # here, so that a resumed run continues the same.
            seed = derive_seed(self.seed, view.name, ball.name, number)
            with (
                doing(f'attacking shard {number} by {each.name}'),
                seeded(seed, self.device),
            ):
                record, adversarial = attack_shard(
                    self.logits, each.build, ball, images, labels, ids
                )
            if saver:
                saver.save(_samples(items, ids), list(adversarial * 255))
            record['saved'] = self.save_adv
            self.store.write(view.name, ball.name, number, record)
            progress.update(done)
        progress.finish()

    def _done(self, each: _Pass, number: int) -> dict[str, Any] | None:
        """Reads the results of a shard, if all that is asked for is there."""
        ids = [each.view.images.ids[index] for index in self.shards[number]]
        record = self.store.read(each.view.name, each.ball.name, number, ids)
        if record is None or (self.save_adv and record['saved'] != self.save_adv):
            return None
        return record

    def _collect(self, each: _Pass) -> list[dict[str, Any]]:
        """Reads the results of all shards, when all processes have written theirs."""
        records: list[dict[str, Any]] = []

        def complete() -> bool:
            while len(records) < len(self.shards):
                record = self._done(each, len(records))
                if record is None:
                    return False
                records.append(record)
            return True

        wait_until(complete)
        return records


def _samples(items: Sequence[dict], ids: Sequence[str]) -> list[BaseDataElement]:
    """Makes what the files of adversarial images are named after."""
    keys = ('img_path', 'ori_shape')
    samples = []
    for item, name in zip(items, ids, strict=True):
        given = item['data_samples']
        kept = {key: given.get(key) for key in keys if given.get(key, None) is not None}
        samples.append(BaseDataElement(metainfo={'img_id': name, **kept}))
    return samples


def _refuse_detectors(model: Any) -> None:
    from mmdet.models.detectors.base import BaseDetector

    bare = bare_model(model)
    if isinstance(bare, BaseDetector):
        raise ConfigError(
            f'AutoAttack works on classifiers only, and {type(bare).__name__} '
            'is a detector: choose another attack.'
        )
