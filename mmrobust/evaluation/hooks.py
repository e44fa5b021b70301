"""Hooks: what loaded weights say about images, and pictures of attacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import mmcv
import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..batch import attack_samples, image_id
from ..registry import HOOKS
from ..weights import converted_normalization, note
from .pictures import attack_picture


class ConvertedWeightsHook(Hook):
    """Remembers how ``load_from`` weights of tools/convert_backbone.py want images.

    The adversarial train loops register it themselves and compare it with the data
    preprocessor. Notes of an ``init_cfg`` are gone with the weights they were about.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leaves the note with the model."""
        needed = converted_normalization(checkpoint)
        if needed is None or runner._resume:
            return
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        for module in model.modules():
            note(module, None)
        note(model, needed)


@HOOKS.register_module()
class AttackVisualizationHook(Hook):
    """Draws clean image | attacked image | amplified difference.

    With the detections on either image and the ground truth. mmdet's own
    DetVisualizationHook reads the picture from disk again and would draw the attacked
    boxes on the clean image. Pictures go through the runner's visualizer to all its
    backends (files, TensorBoard, ...).

    Args:
        num_images: images to draw per attack and process, the first ones of the set.
        score_thr: detections below this score are not drawn.
        out_dir: write PNG files to this folder of the run's log directory instead of
            handing them to the visualizer's backends.
    """

    def __init__(
        self, num_images: int = 8, score_thr: float = 0.3, out_dir: str | None = None
    ) -> None:
        self.num_images = num_images
        self.score_thr = score_thr
        self.out_dir = out_dir
        self._clean: dict[Any, BaseDataElement] = {}
        self._drawn: dict[str, int] = {}

    def before_test_epoch(self, runner: Runner) -> None:
        """Forgets the pictures of an earlier evaluation."""
        self._clean.clear()
        self._drawn.clear()

    before_val_epoch = before_test_epoch

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Remembers the benign detections of the images that will be drawn."""
        for output in outputs or ():
            if len(self._clean) < self.num_images:
                self._clean[image_id(output)] = output.cpu()

    after_val_iter = after_test_iter

    @master_only
    def after_attack_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        adversarial: Sequence[Tensor],
        outputs: Sequence[BaseDataElement],
        attack: str,
        gt_frame: str,
    ) -> None:
        """Draws the images of one attacked batch."""
        if self._drawn.get(attack, 0) >= self.num_images:
            return
        truths = attack_samples(data_batch['data_samples'], 'cpu', gt_frame)
        for i, output in enumerate(outputs):
            number = self._drawn.get(attack, 0)
            key = image_id(output)
            if number >= self.num_images or key not in self._clean:
                continue
            picture = attack_picture(
                runner.visualizer,
                data_batch['inputs'][i],
                adversarial[i].detach().cpu(),
                self._clean[key],
                output.cpu(),
                truths[i],
                self.score_thr,
                attack,
            )
            # An id may be a path, as WIDER FACE's are.
            name = f'attack_{attack}_{quote(str(key), safe="")}'
            self._emit(runner, name, picture, number)
            self._drawn[attack] = number + 1

    def _emit(self, runner: Runner, name: str, picture: np.ndarray, step: int) -> None:
        if self.out_dir is None:
            runner.visualizer.add_image(name, picture, step)
            return
        folder = os.path.join(
            runner.work_dir, runner.timestamp, self.out_dir, 'attacks'
        )
        mmcv.imwrite(picture[..., ::-1], os.path.join(folder, f'{name}.png'))
