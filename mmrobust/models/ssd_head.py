"""SSD's head, able to predict in mmdet 3.3 and to be attacked class by class."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmdet.models.dense_heads import SSDHead as MMDetSSDHead
from mmdet.models.losses import CrossEntropyLoss
from torch import Tensor

from ..registry import MODELS


@MODELS.register_module()
class SSDHead(MMDetSSDHead):
    """mmdet's SSDHead with a ``loss_cls`` module.

    mmdet's own has none: its base class asks for one when it predicts, which then ends
    in an AttributeError, and class weights (A_cwa, CWAT) have nothing to weight.
    Losses and weights are mmdet's; checkpoints fit both.

    Args:
        *args: as mmdet's SSDHead's.
        **kwargs: as mmdet's SSDHead's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_cls = CrossEntropyLoss(use_sigmoid=False)

    def loss_by_feat_single(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        anchor: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Losses of one image; see mmdet's SSDHead.

        The loss of equal scores is the logarithm of their number, times the weight of
        the label's class where classes are weighted.
        """
        equal = torch.zeros_like(cls_score)
        loss = self.loss_cls(equal, labels, reduction_override='none')
        factor = loss / math.log(equal.shape[1])
        return super().loss_by_feat_single(
            cls_score,
            bbox_pred,
            anchor,
            labels,
            label_weights * factor,
            *args,
            **kwargs,
        )
