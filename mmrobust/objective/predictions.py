"""Ranks predictions before suppression: those of objects down, false ones up."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.models import frozen, replaced
from .detections import boxes_of, in_input_frame, overlaps, without_truth
from .oracle import LossOracle
from .scores import outranked

# A prediction stands for an object from this IoU on, the lowest that COCO's AP knows.
OVERLAP = 0.5
# What an IoU counts beside a logit: between 0.5 and 1 as much as three logits do.
BOX_WEIGHT = 6.0
# An object of which nothing is predicted counts as found with the first score, which no
# threshold lets pass. Above the second one float32 hardly resolves chances.
_LEAST, _MOST = 1e-6, 1 - 1e-6
# Of the predictions of an image so many with the highest scores are looked at.
_LOOKED_AT = 5000


def ranking(
    predicted: InstanceData, truth: InstanceData, ignored: InstanceData | None = None
) -> Tensor:
    """Returns how far false predictions outrank the true ones of an image's objects.

    AP depends on the order of scores alone, and :func:`mmrobust.objective.scores.
    outranked` compares that of every object with the highest false ones. True are, for
    an object, all predictions of its class whose IoU with it is at least 0.5, since
    each could take the place of another that vanishes: their ``logit(score) + 6 * IoU``
    are put together by a logarithm of summed exponentials. Others are false, except
    those inside of ignored regions of their class.

    Args:
        predicted: predictions with ``bboxes`` (n, 4), ``scores`` (n,) from 0 to 1, and
            ``labels`` (n,).
        truth: objects with ``bboxes`` (m, 4) and ``labels`` (m,), in the same frame.
        ignored: regions of crowds, with the same.

    Returns:
        A scalar, with a gradient with respect to scores and boxes.
    """
    logits = predicted.scores.float().clamp(1e-30, _MOST).logit()
    iou = overlaps(predicted, truth, 'iou')
    true = iou >= OVERLAP
    false = ~true.any(1)
    if ignored is not None and len(ignored):
        false &= (overlaps(predicted, ignored, 'iof') < OVERLAP).all(1)
    own = (logits[:, None] + BOX_WEIGHT * iou).masked_fill(~true, -torch.inf)
    least = logits.new_full((1, len(truth)), _LEAST).logit()
    return outranked(torch.cat([own, least]).logsumexp(0), logits[false])


class PredictionOracle(LossOracle):
    """Answers an attack by the detector's predictions, the way it is deployed.

    The objective is :func:`ranking` of all boxes that the model's own ``predict``
    gives, before overlapping ones are suppressed and without a threshold of scores.
    Gradients pass all that ``predict`` does: the heads, whose output mmdet detaches
    before it decodes it, and whatever a defence does there, purification, resizing or a
    second model.

    Args:
        model, data_batch, samples, objective, per_image: see :class:`LossOracle`.

    Raises:
        ConfigError: if the model gives boxes with masks only, or (when asked) if it
            does not detect upright ones.
    """

    def __init__(
        self,
        model: Any,
        data_batch: dict,
        samples: Sequence[Any],
        objective: Any,
        per_image: bool = True,
    ) -> None:
        super().__init__(model, data_batch, samples, objective, per_image)
        self._changes = [*_unsuppressed(model), *_attached()]

    def _loss(self, part: list[int], images: Sequence[Tensor]) -> Tensor:
        # Before the images are preprocessed, see LossOracle.
        self._memory.restore()
        data = self._data(part, [images[i] for i in part])
        with self._predicting():
            outputs = self.model._run_forward(data, mode='predict')
        self.forwards += len(part)
        values = [
            ranking(
                in_input_frame(boxes_of(output, self.model), self.samples[i]),
                self.samples[i].gt_instances,
                self.samples[i].get('ignored_instances', None),
            )
            for i, output in zip(part, outputs, strict=True)
        ]
        return torch.stack(values).mean()

    def _truth_of(self, sample: Any, targets: Tensor | None) -> Any:
        return without_truth(sample)

    @contextmanager
    def _predicting(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            for change in self._changes:
                stack.enter_context(replaced(*change))
            yield


def _unsuppressed(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yields what lets ``predict`` give all boxes, and no masks of them.

    mmdet's heads read it from their ``test_cfg``. What proposes regions inside of a
    detector stays as it is, and so does a head that suppresses nothing.
    """
    for name, module in model.named_modules():
        config = vars(module).get('test_cfg')
        inside = 'rpn_head' in name.split('.')
        if not inside and isinstance(config, dict) and 'nms' in config:
            changed = deepcopy(config)
            changed.update(nms=None, score_thr=0.0, max_per_img=_LOOKED_AT)
            yield module, 'test_cfg', changed
        if module._modules.get('mask_head') is None:
            continue
        if 'roi_head' not in name.split('.'):
            raise ConfigError(
                f'{type(model).__name__} predicts masks together with its boxes, and '
                'those of all boxes are too many'
            )
        yield module, 'mask_head', None


def _attached() -> Iterator[tuple[Any, str, Any]]:
    """Yields what keeps in the graph what mmdet's heads detach before they decode it.

    That one function alone: elsewhere ``detach()`` may be what a gradient is made of,
    as in ``x + (step(x) - x).detach()``.
    """
    from mmdet.models.utils import misc  # not at the top: classifiers

    name, own = 'select_single_mlvl', misc.select_single_mlvl
    for module in list(sys.modules.values()):
        if getattr(module, '__dict__', {}).get(name) is own:
            yield module, name, _selected


def _selected(
    mlvl_tensors: Sequence[Tensor], batch_id: int, detach: bool = True
) -> list[Tensor]:
    return [each[batch_id] for each in mlvl_tensors]
