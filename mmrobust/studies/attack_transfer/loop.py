"""One detector's test set, shown in several versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement

from ...evaluation.loops import AttackTestLoop
from ...evaluation.original_pixels import PicturePipeline
from ...registry import LOOPS

Pictures = Callable[[Any, BaseDataElement], np.ndarray]


@dataclass
class Version:
    """One version of every image.

    Attributes:
        name: of the version.
        pictures: gives the picture (H, W, C) that takes the place of an image, from
            its img_id and its sample; None leaves all as they are.
    """

    name: str
    pictures: Pictures | None


@LOOPS.register_module()
class TransferTestLoop(AttackTestLoop):
    """mmengine's TestLoop, once for each version of the images.

    Images go through the network one by one, so that no padding depends on others.

    Attributes:
        versions: what is shown, set before the loop runs.
        found: metrics by the version's name; empty where nothing was detected.
    """

    versions: list[Version] = []
    found: dict[str, dict[str, float]]

    def run(self) -> dict[str, float]:
        """Shows all versions."""
        runner = self.runner
        runner.call_hook('before_test')
        runner.call_hook('before_test_epoch')
        runner.model.eval()
        follower = PicturePipeline(self.dataloader.dataset)
        self.found = {
            version.name: self._show(version, follower) for version in self.versions
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
    def _show(self, version: Version, follower: PicturePipeline) -> dict[str, float]:
        dataset = self.dataloader.dataset
        collate: Any = self.dataloader.collate_fn
        for index in range(len(dataset)):
            batch = collate([dataset[index]])
            if version.pictures:
                (sample,) = batch['data_samples']
                picture = version.pictures(sample.img_id, sample)
                batch = follower.rerun(sample.img_id, picture, sample)
            with autocast(enabled=self.fp16):
                outputs = self.runner.model.test_step(batch)
            self.evaluator.process(data_samples=outputs, data_batch=batch)
        return dict(self.evaluator.evaluate(len(dataset)))
