"""Attacks every source detector once, then shows all images to every target."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement

from ..errors import ConfigError, doing
from ..evaluation import AttackTestLoop, PicturePipeline, choose_images
from ..registry import LOOPS
from ..utils.models import bare_model
from ..weights import check_checkpoint
from .attack_matrix import Detector, Entry, Matrix, Plan
from .study import choose_metric, open_store, running, say, usual_keys

_CLEAN = 'clean'
# Gives the picture (H, W, C) that takes the place of an image, from its img_id and its
# sample.
Pictures = Callable[[Any, BaseDataElement], np.ndarray]


def run_matrix(plan: Plan) -> Matrix:
    """Runs what has not been run, and writes the matrix after every target.

    Args:
        plan: the matrix.

    Returns:
        Its results.

    Raises:
        ConfigError: before the first attack for anything that can be known then.
    """
    sources = [Source(plan, each) for each in plan.sources]
    _check_same_images(plan, sources)
    matrix = Matrix(plan, _metric(plan))
    versions: dict[str, Pictures | None] = {_CLEAN: None}
    for source in sources:
        name = source.detector.name
        if source.result is not None:
            say(f'{name}: its images are there.')
        else:
            say(f'{name}: attacking {len(source.ids)} images.')
            source.attack()
        matrix.own[name] = source.result or {}
        versions.setdefault(_control(source, sources), source.clean)
    versions |= {_attacked(source): source.adversarial for source in sources}
    for target in plan.targets:
        say(f'{target.name}: tested on {len(versions)} versions of the images.')
        cfg = target.test_config(
            plan.work_dir / 'targets' / target.name,
            type='mmrobust.TransferTestLoop',
            seed=plan.seed,
            num_images=plan.num_images,
        )
        tested = run_test(cfg, lambda loop: setattr(loop, 'versions', versions))
        _enter(matrix, target.name, tested.found, sources)
        matrix.write()
    return matrix


def run_test(cfg: Config, prepare: Callable[[Any], None] | None = None) -> Any:
    """Tests a config's checkpoint.

    Args:
        cfg: the config, with ``load_from``.
        prepare: is given the test loop before it runs.

    Returns:
        The test loop.

    Raises:
        ConfigError: if the checkpoint does not fit the model.
    """
    with running(cfg, os.path.basename(cfg.work_dir)) as runner:
        check_checkpoint(cfg.load_from, bare_model(runner.model))
        loop: Any = runner.test_loop
        if prepare:
            prepare(loop)
        with doing(f'testing {cfg.load_from}'):
            runner.test()
    return loop


@LOOPS.register_module()
class TransferTestLoop(AttackTestLoop):
    """mmengine's TestLoop, once for each version of the images.

    Images go through the network one by one, so that no padding depends on others.

    Attributes:
        versions: by name what is shown, set before the loop runs; None leaves the
            images as they are.
        found: metrics by the version's name; empty where nothing was detected.
    """

    versions: Mapping[str, Pictures | None] = {}
    found: dict[str, dict[str, float]]

    def run(self) -> dict[str, float]:
        """Shows all versions."""
        runner = self.runner
        runner.call_hook('before_test')
        runner.call_hook('before_test_epoch')
        runner.model.eval()
        follower = PicturePipeline(self.dataloader.dataset)
        self.found = {
            name: self._show(pictures, follower)
            for name, pictures in self.versions.items()
        }
        metrics = {
            f'{name}/{key}': value
            for name, values in self.found.items()
            for key, value in values.items()
        }
        runner.call_hook('after_test_epoch', metrics=metrics)
        runner.call_hook('after_test')
        return metrics

    @torch.no_grad()
    def _show(
        self, pictures: Pictures | None, follower: PicturePipeline
    ) -> dict[str, float]:
        dataset = self.dataloader.dataset
        collate: Any = self.dataloader.collate_fn
        for index in range(len(dataset)):
            batch = collate([dataset[index]])
            if pictures is not None:
                (sample,) = batch['data_samples']
                picture = pictures(sample.img_id, sample)
                batch = follower.rerun(sample.img_id, picture, sample)
            with autocast(enabled=self.fp16):
                outputs = self.runner.model.test_step(batch)
            self.evaluator.process(data_samples=outputs, data_batch=batch)
        return dict(self.evaluator.evaluate(len(dataset)))


class Source:
    """The adversarial images of one detector: made once, and found again.

    Args:
        plan: the matrix.
        detector: one of its sources.

    Attributes:
        result: what its robustness report says about the attack, once all images are
            there.

    Raises:
        ConfigError: if its pipeline cannot be followed, or its folder holds images that
            were made with other settings.
    """

    def __init__(self, plan: Plan, detector: Detector) -> None:
        self.plan = plan
        self.detector = detector
        self.folder = plan.work_dir / 'sources' / detector.name
        self.follower = follow(plan, detector)
        self.ids = image_files(self.follower)
        settings = {
            **detector.settings(),
            'attack': plan.attack_settings,
            'seed': plan.seed,
            'num_images': plan.num_images,
        }
        there = self.folder.glob('images/**/*.npz')
        store = open_store(self.folder, settings, 'source.json', there)
        self._record = store.part('attack', None)
        self.result: dict[str, Any] | None = None
        if all(self._file(img_id).is_file() for img_id in self.ids):
            self.result = self._record.read(['result'])

    def attack(self) -> None:
        """Makes the images, from the start."""
        plan, report = self.plan, self.folder / 'robustness.json'
        loop = {
            'type': 'mmrobust.AttackTestLoop',
            'attacks': {plan.attack: plan.preset},
            'seed': plan.seed,
            'num_images': plan.num_images,
            'save_adv': str(self.folder / 'images'),
            'report': str(report),
        }
        run_test(self.detector.test_config(self.folder, **loop))
        # Controls may stand beside it.
        made = json.loads(report.read_text(encoding='utf-8'))['attacks']
        self.result = next(each for each in made if each['name'] == plan.attack)
        self._record.write(['result'], self.result)

    def clean(self, img_id: Any, sample: BaseDataElement) -> np.ndarray:
        """Returns the unattacked image as this detector's network gets it.

        Args:
            img_id: its id.
            sample: anything that says how large the original is.

        Returns:
            float32 (h, w, C), without padding.
        """
        data = self.follower.dataset[self.follower.index(img_id)]
        image = self.follower.without_padding(sample, data['inputs'])
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy(), dtype=np.float32)

    def adversarial(self, img_id: Any, sample: BaseDataElement) -> np.ndarray:
        """Returns the attacked image, in the same form.

        Raises:
            ConfigError: if its file is missing or damaged.
        """
        path = self._file(img_id)
        try:
            with np.load(path) as content:
                image, original = content['image'], content['ori_shape']
        except Exception as error:  # zipfile, zlib and numpy each have their own
            raise ConfigError(
                f'{path} is damaged or missing: remove {self.folder}, and its images '
                'are made again.'
            ) from error
        if tuple(original[:2]) != tuple(sample.ori_shape[:2]):
            raise ConfigError(
                f'{path} is of a picture of {original[0]} x {original[1]} pixels, and '
                f'a target has one of {sample.ori_shape[0]} x {sample.ori_shape[1]} '
                'under that id: is it the same dataset?'
            )
        height, width = self.follower.geometry(sample).resized
        # What an attack did to padding is lost, as padding is no part of a picture.
        image = image[:, :height, :width].transpose(1, 2, 0)
        return np.ascontiguousarray(image, dtype=np.float32)

    def _file(self, img_id: Any) -> Any:
        name = quote(str(img_id), safe='')
        return self.folder / 'images' / self.plan.attack / f'{name}.npz'


def follow(plan: Plan, detector: Detector) -> PicturePipeline:
    """Builds the test pipeline of a detector on the matrix's images.

    Raises:
        ConfigError: if it cannot be followed.
    """
    init_default_scope(detector.cfg.get('default_scope') or 'mmengine')
    loader = detector.cfg.test_dataloader.to_dict()
    chosen: Any = choose_images(loader, plan.num_images, plan.seed)
    dataset = chosen['dataset']
    dataset = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
    try:
        return PicturePipeline(dataset)
    except ConfigError as error:
        raise ConfigError(f'{detector.name}: {error}') from error


def image_files(follower: PicturePipeline) -> dict[Any, str]:
    """Returns file names of a dataset's images by id."""
    dataset = follower.dataset
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return {
        info.get('img_id'): os.path.basename(info.get('img_path', '')) for info in infos
    }


def _control(source: Source, sources: list[Source]) -> str:
    """Gives all sources whose images have the same sizes one name."""
    sizes = source.detector.resizing()
    first = next(each for each in sources if each.detector.resizing() == sizes)
    return f'clean, at the size of {first.detector.name}'


def _attacked(source: Source) -> str:
    return f'made for {source.detector.name}'


def _enter(
    matrix: Matrix,
    target: str,
    found: Mapping[str, Mapping[str, Any]],
    sources: list[Source],
) -> None:
    """Puts what one target's test gave into the matrix."""
    values = {}
    for name, metrics in found.items():
        if not metrics:
            # CocoMetric's answer to no detection at all.
            values[name] = 0.0
            matrix.notes.append(f'{target} finds nothing on {name}: counted as 0')
        elif matrix.metric not in metrics:
            raise ConfigError(
                f'the evaluator of {target} gives no {matrix.metric!r} but '
                f'{", ".join(metrics)}: choose one of them with --metric.'
            )
        else:
            values[name] = float(metrics[matrix.metric])
    matrix.clean[target] = values[_CLEAN]
    for source in sources:
        made = _attacked(source)
        value, control = values[made], values[_control(source, sources)]
        entry = Entry(source.detector.name, target, value, control, dict(found[made]))
        matrix.entries.append(entry)


def _metric(plan: Plan) -> str:
    """Chooses the figure, which all targets must give."""
    keys = [usual_keys(target.cfg.test_evaluator) for target in plan.targets]
    if not all(keys) and plan.metric:
        return plan.metric
    shared = [key for key in keys[0] if all(key in other for other in keys)]
    if all(keys) and not shared:
        pairs = zip(plan.targets, keys, strict=True)
        given = '; '.join(f'{t.name} gives {", ".join(k[:3])}' for t, k in pairs)
        raise ConfigError(f'the targets have no figure in common: {given}.')
    return choose_metric(plan.metric, shared, Config())[0]


def _check_same_images(plan: Plan, sources: list[Source]) -> None:
    """Images are told apart by id, which must mean the same for all detectors."""
    first, known = sources[0], {each.detector.name: each.ids for each in sources}
    for detector in plan.detectors:
        found = known.get(detector.name) or image_files(follow(plan, detector))
        refusal = (
            f'{detector.name} and {first.detector.name} are not tested on the same '
            'images'
        )
        if found.keys() != first.ids.keys():
            missing = first.ids.keys() ^ found.keys()
            raise ConfigError(
                f'{refusal}: {len(missing)} img_ids are only in one of the two test '
                f'sets, for instance {next(iter(missing))!r}.'
            )
        for img_id, name in found.items():
            if name != first.ids[img_id]:
                raise ConfigError(
                    f'{refusal}: img_id {img_id!r} is {name!r} in one and '
                    f'{first.ids[img_id]!r} in the other.'
                )
