"""mmdet's Swin Transformer, whose weights may come from any source."""

from __future__ import annotations

from typing import Any

from mmdet.models.backbones import SwinTransformer as Stock
from mmengine.model import BaseModule

from ..registry import MODELS


@MODELS.register_module()
class SwinTransformer(Stock):
    """mmdet's SwinTransformer, which obeys its ``init_cfg``.

    mmdet's own reads the ``checkpoint`` of any ``init_cfg`` by itself, as if it were of
    type ``Pretrained``: names that it does not know are left out, and those weights
    stay random, without a word. Frozen stages are so from the start, as DDP needs it.
    Names of weights, levels and all settings are mmdet's.
    """

    init_cfg: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # mmdet's waits for training mode, and DDP, which wraps it before, then waits
        # for gradients of stages that have none.
        self._freeze_stages()

    def init_weights(self) -> None:
        """Runs the steps of ``init_cfg``; mmdet's own code for ``Pretrained`` alone."""
        own = self.init_cfg
        stock = own is None or (isinstance(own, dict) and own['type'] == 'Pretrained')
        # What has been loaded once leaves a Pretrained without a file behind.
        if stock and not self.is_init:
            super().init_weights()
        else:
            BaseModule.init_weights(self)
