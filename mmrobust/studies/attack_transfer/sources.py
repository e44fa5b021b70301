"""A detector's adversarial images: made once, and found again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement

from ...errors import ConfigError
from ...evaluation.original_pixels import PicturePipeline
from ...evaluation.subset import choose_images
from ...utils.files import finite, write_atomically
from ...utils.store import changes
from .plan import Detector, Plan
from .runs import run_test

_RECORD = 'source.json'


class Source:
    """The adversarial images of one detector.

    Args:
        plan: the matrix.
        detector: one of its sources.

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
        self.settings = json.loads(
            json.dumps(
                {
                    **detector.settings(),
                    **{f'attack.{k}': v for k, v in plan.attack_settings.items()},
                    'seed': plan.seed,
                    'num_images': plan.num_images,
                },
                default=str,
            )
        )
        self.record = self._read()

    @property
    def done(self) -> bool:
        """Whether all images are there."""
        return bool(self.record.get('complete')) and all(
            self._file(img_id).is_file() for img_id in self.ids
        )

    def attack(self) -> None:
        """Makes the images, from the start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write({'complete': False})
        plan, report = self.plan, self.folder / 'robustness.json'
        loop = {
            'type': 'mmrobust.AttackTestLoop',
            'attacks': {plan.attack: plan.preset},
            'seed': plan.seed,
            'num_images': plan.num_images,
            'save_adv': str(self.folder / 'images'),
            'report': str(report),
        }
        run_test(self.detector.test_config(self.folder, loop))
        (attacked,) = json.loads(report.read_text(encoding='utf-8'))['attacks']
        self._write({'complete': True, 'result': attacked})

    def clean(self, img_id: Any, sample: BaseDataElement) -> np.ndarray:
        """The unattacked image as this detector's network gets it, without padding.

        Args:
            img_id: its id.
            sample: anything that says how large the original is.

        Returns:
            float32 (h, w, C).
        """
        data = self.follower.dataset[self.follower.index(img_id)]
        image = self.follower.without_padding(sample, data['inputs'])
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy(), dtype=np.float32)

    def adversarial(self, img_id: Any, sample: BaseDataElement) -> np.ndarray:
        """The attacked image, in the same form.

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

    def _file(self, img_id: Any) -> Path:
        name = quote(str(img_id), safe='')
        return self.folder / 'images' / self.plan.attack / f'{name}.npz'

    def _write(self, state: Mapping[str, Any]) -> None:
        self.record = finite({'settings': self.settings, **state})
        text = json.dumps(self.record, indent=1) + '\n'
        write_atomically(self.folder / _RECORD, text)

    def _read(self) -> dict[str, Any]:
        path = self.folder / _RECORD
        if not path.is_file():
            if any(self.folder.glob('images/**/*.npz')):
                raise ConfigError(
                    f'{self.folder} holds images but no {_RECORD}, so what they were '
                    'made with is not known: give another --work-dir.'
                )
            return {}
        try:
            record = json.loads(path.read_text(encoding='utf-8'))
            changed = differences(record['settings'], self.settings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f'{path} is damaged: remove {self.folder}, and its images are made '
                'again.'
            ) from error
        if changed:
            shown = '; '.join(changed[:4]) + ('; ...' if len(changed) > 4 else '')
            raise ConfigError(
                f'the images of {self.detector.name} in {self.folder} were made with '
                f'other settings ({shown}): give another --work-dir, or the same '
                'settings.'
            )
        return record


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What has changed between two flat descriptions, in words."""
    before, after = dict(old), dict(new)
    other = before.pop('checkpoint', None) != after.pop('checkpoint', None)
    # A checkpoint's hash says nothing to a reader.
    named = ['the checkpoint was another file'] if other else []
    return named + changes(before, after)


def follow(plan: Plan, detector: Detector) -> PicturePipeline:
    """The test pipeline of a detector on the matrix's images.

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
    """File names of a dataset's images by id."""
    dataset = follower.dataset
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return {
        info.get('img_id'): os.path.basename(info.get('img_path', '')) for info in infos
    }
