"""Evaluations of the trained tiny detector, with a defect if asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import report_page
import tiny
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from torch import Tensor

_OWN = torch.Generator().manual_seed(1)


def coarse(image: Tensor) -> Tensor:
    """A few levels per channel (about 20 pixel units apart), which has no gradient."""
    return (image * 3).round() / 3


def noisy(image: Tensor) -> Tensor:
    """Noise of the detector's own, that no seed repeats."""
    return image + 0.2 * torch.randn(image.shape, generator=_OWN)


DEFECTS: dict[str, Callable[[Tensor], Tensor]] = {'coarse': coarse, 'noisy': noisy}


@MODELS.register_module(force=True)
class DefectivePreprocessor(DetDataPreprocessor):
    """Does something to what it has normalised."""

    def __init__(self, defect: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.defect = DEFECTS[defect]

    def forward(self, data: dict, training: bool = False) -> dict:
        data = super().forward(data, training)
        data['inputs'] = self.defect(data['inputs'])
        return data


def fcos(defect: str | None = None) -> dict:
    """The detector of the fixture ``trained``."""
    model = tiny.fcos()
    if defect:
        changed = {'type': 'DefectivePreprocessor', 'defect': defect}
        model['data_preprocessor'] = {**model['data_preprocessor'], **changed}
    return model


class Evaluation:
    """Tests the trained detector; call it with attacks and settings of the loop.

    Args:
        build_runner: the fixture.
        trained: the fixture.
        folder: of the reports.
    """

    def __init__(self, build_runner: Callable, trained: Path, folder: Path) -> None:
        self.build_runner, self.trained, self.folder = build_runner, trained, folder
        self.runner: Any = None

    def __call__(
        self,
        attacks: dict[str, Any],
        defect: str | None = None,
        model: dict | None = None,
        overrides: dict[str, Any] | None = None,
        **loop: Any,
    ) -> dict[str, Any]:
        """Returns the report."""
        loop = {'report': str(self.folder / 'r.json'), **loop}
        test_cfg = dict(type='mmrobust.AttackTestLoop', attacks=attacks, **loop)
        settings = {'load_from': str(self.trained), 'test_cfg': test_cfg}
        model = fcos(defect) if model is None else model
        self.runner = self.build_runner(model, **{**settings, **(overrides or {})})
        self.runner.test()
        report = dict(json.loads(Path(loop['report']).read_text()))
        report_page.check(report)
        return report


def images_of(folder: Path) -> dict[str, np.ndarray]:
    """Saved adversarial images by their path in a folder, without its ending."""
    return {
        str(path.relative_to(folder).with_suffix('')): np.load(path)['image']
        for path in sorted(folder.rglob('*.npz'))
    }


def attack_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    """An attack's entry."""
    (found,) = (each for each in report['attacks'] if each['name'] == name)
    return found


def ap(entry: dict[str, Any]) -> float:
    """mAP by the analysis."""
    return float(entry['boxes']['mAP']['estimate'])
