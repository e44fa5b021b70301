"""A hook that keeps what loaded weights say about the images that they need."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..weights import converted_normalization, note


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
