"""Counts the predictions that reach suppression, softly for attacks that raise them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.models import replaced
from .predictions import (
    Change,
    PredictionOracle,
    attached,
    everywhere,
    suppressing,
    unsuppressed,
)

# Of the predictions of an image none is left out.
_ALL = 10**9


def soft_count(scores: Tensor, threshold: float) -> Tensor:
    """Returns about how many scores are above a threshold, with a gradient.

    ``sum of sigmoid(logit(score) - logit(threshold))``: a prediction counts half at the
    threshold, in proportion to its score far below, and gains nothing far above, unlike
    in a sum of scores (Overload, arXiv 2304.05370).

    Args:
        scores: from 0 to 1, any shape.
        threshold: above 0 and below 1.
    """
    odds = threshold / (1 - threshold)
    # The same without logits, whose slope is infinite at 0.
    chances = scores.float()
    return (chances / (chances + odds * (1 - chances))).sum()


def threshold_of(model: nn.Module) -> float:
    """Returns the score above which a detector's predictions reach suppression.

    Raises:
        ConfigError: if it suppresses nothing, or whatever the score.
    """
    found = suppressing(model)
    if not found:
        raise ConfigError(
            f'{type(model).__name__} suppresses no boxes (no nms in its test_cfg): '
            'whatever the image, it compares nothing, so that there is no load for the '
            'objective latency to raise.'
        )
    threshold = float(found[0].test_cfg.get('score_thr') or 0)
    if not 0 < threshold < 1:
        raise ConfigError(
            f'score_thr={threshold:g} in the test_cfg of {type(model).__name__} lets '
            'every prediction reach suppression, so that the objective latency has '
            'nothing to raise: set one between 0 and 1.'
        )
    return threshold


class LatencyOracle(PredictionOracle):
    """Answers an attack by how many predictions reach suppression, softly counted.

    Of a dense head those scores count that mmdet compares with the threshold, the
    ``nms_pre`` highest of each level and before they are multiplied by a centerness; of
    others those of all boxes. As many as in ``test_cfg`` may be suppressed.

    Args:
        model, data_batch, samples, objective, per_image: see :class:`PredictionOracle`.

    Raises:
        ConfigError: if the model suppresses no boxes, or as :class:`PredictionOracle`.
    """

    def __init__(
        self,
        model: Any,
        data_batch: dict,
        samples: Sequence[Any],
        objective: Any,
        per_image: bool = True,
    ) -> None:
        self._threshold = threshold_of(model)
        self._compared: list[Tensor] = []
        super().__init__(model, data_batch, samples, objective, per_image)

    def _changed(self) -> Iterator[Change]:
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.utils import misc

        model = self.model
        yield from unsuppressed(model, score_thr=0.0, conf_thr=-1, max_per_img=_ALL)
        yield from attached()
        heads = suppressing(model)
        # YOLOv3 has a threshold of the objectness beside it: there the product counts.
        if any('conf_thr' in head.test_cfg for head in heads):
            return
        if any(isinstance(head, BaseDenseHead) for head in heads):
            own = misc.filter_scores_and_topk

            def noted(*args: Any, **kwargs: Any) -> Any:
                found = own(*args, **kwargs)
                self._compared.append(found[0])
                return found

            yield from everywhere('filter_scores_and_topk', noted)

    def _measure(self, part: list[int], outputs: Sequence[Any]) -> Tensor:
        scores = self._compared or [each.pred_instances.scores for each in outputs]
        total = torch.stack([soft_count(each, self._threshold) for each in scores])
        self._compared.clear()
        return total.sum() / len(part)


@contextmanager
def counting(model: nn.Module, all_of_them: bool = False) -> Iterator[None]:
    """Lets ``predict`` give what would have reached suppression, while it lasts.

    Args:
        model: the bare detector.
        all_of_them: as if every score were above the threshold and all regions that may
            be proposed were, which is the most that ``test_cfg`` lets through.
    """
    changes = {'score_thr': -1.0, 'conf_thr': -1} if all_of_them else {}
    with ExitStack() as stack:
        for change in unsuppressed(model, max_per_img=_ALL, **changes):
            stack.enter_context(replaced(*change))
        for head in suppressing(model, proposals=True) if all_of_them else ():
            without = type(head.test_cfg)({**head.test_cfg, 'nms': None})
            stack.enter_context(replaced(head, 'test_cfg', without))
        yield


def classes_at_once(threshold: float, num_classes: int) -> int:
    """Returns for how many classes a softmax can be above a threshold at once."""
    return min(num_classes, math.ceil(1 / threshold) - 1)
