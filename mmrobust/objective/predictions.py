"""Ranks predictions before suppression: those of objects down, false ones up."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

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

# An object, the name of an attribute of it, and what is to be there for a while.
Change: TypeAlias = tuple[Any, str, Any]


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
    logits = _logits(predicted.scores.float())
    iou = overlaps(predicted, truth, 'iou')
    true = iou >= OVERLAP
    false = ~true.any(1)
    if ignored is not None and len(ignored):
        false &= (overlaps(predicted, ignored, 'iof') < OVERLAP).all(1)
    own = (logits[:, None] + BOX_WEIGHT * iou).masked_fill(~true, -torch.inf)
    least = logits.new_full((1, len(truth)), _LEAST).logit()
    return outranked(torch.cat([own, least]).logsumexp(0), logits[false])


def _logits(scores: Tensor) -> Tensor:
    """Logits of scores, which go on as a line where float32 hardly resolves them.

    A score that is clipped would have no gradient: that of an object could never be
    lowered. One that is rounded to 1 has none in any case.
    """
    beyond = (scores - _MOST).clamp(min=0) / (_MOST * (1 - _MOST))
    return scores.clamp(1e-30, _MOST).logit() + beyond


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
        ConfigError: if the model predicts masks alone, or (when asked) if it does not
            detect upright boxes.
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
        self._changes = list(self._changed())

    def _changed(self) -> Iterator[Change]:
        """Yields what is put in place while the model predicts."""
        # YOLOv3 has a threshold of the objectness beside the one of scores.
        limits = {'score_thr': 0.0, 'conf_thr': -1, 'max_per_img': _LOOKED_AT}
        yield from unsuppressed(self.model, **limits)
        yield from attached()

    def _loss(self, part: list[int], images: Sequence[Tensor]) -> Tensor:
        # Before the images are preprocessed, see LossOracle.
        self._memory.restore()
        data = self._data(part, [images[i] for i in part])
        with self._predicting():
            outputs = self.model._run_forward(data, mode='predict')
        self.forwards += len(part)
        return self._measure(part, outputs)

    def _measure(self, part: list[int], outputs: Sequence[Any]) -> Tensor:
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


def unsuppressed(model: nn.Module, **changes: Any) -> Iterator[Change]:
    """Yields what lets ``predict`` give all boxes, and no masks of them.

    mmdet's heads read it from their ``test_cfg``. What proposes regions inside of a
    detector stays as it is, and so does a head that suppresses nothing.

    Args:
        model: the bare detector.
        **changes: other settings of the same ``test_cfg``.

    Raises:
        ConfigError: if the model predicts masks alone, or refines boxes at length.
    """
    for module in suppressing(model):
        changed = deepcopy(module.test_cfg)
        changed.update(nms=None, **changes)
        if any(hasattr(part, 'set_nms') for part in module.modules()):
            # CrowdDet suppresses by itself what overlaps more, which nothing does.
            changed.nms = {'iou_threshold': 2.0}
        queries = getattr(module, 'num_query', None)
        if queries and 'max_per_img' in changes:
            # CO-DETR takes so many of its scores, and must not be asked for more.
            sigmoid = getattr(module.loss_cls, 'use_sigmoid', False)
            most = queries * (module.num_classes if sigmoid else 1)
            changed.max_per_img = min(changed.max_per_img, most)
        yield module, 'test_cfg', changed
    for name, module in model.named_modules():
        if 'grid_head' in module._modules:
            raise ConfigError(
                f'{type(model).__name__} refines each box by a grid of its own, which '
                'is too much for all boxes before suppression'
            )
        masks: Any = module._modules.get('mask_head')
        if masks is None:
            continue
        if 'roi_head' in name.split('.'):
            yield module, 'mask_head', None
        elif hasattr(module, '_bbox_mask_post_process'):  # RTMDet-Ins
            yield module, '_bbox_mask_post_process', partial(_boxes_alone, module)
        elif module._modules.get('bbox_head') is not None:  # CondInst, YOLACT
            yield masks, 'predict', _passed_by
        else:
            raise ConfigError(
                f'{type(model).__name__} predicts masks alone, and no boxes that could '
                'be read before suppression'
            )


def _boxes_alone(
    head: Any, results: InstanceData, mask_feat: Tensor, **settings: Any
) -> InstanceData:
    """Stands in for a head's last step, which makes a mask of every box."""
    found: InstanceData = head._bbox_post_process(results, **settings)
    return found


def _passed_by(
    features: Any,
    samples: Sequence[Any],
    rescale: bool,
    results_list: Sequence[InstanceData],
) -> Sequence[InstanceData]:
    """Stands in for a mask head that gets boxes in the frame of the input."""
    for results, sample in zip(results_list, samples, strict=True):
        if rescale:
            scale = results.bboxes.new_tensor(sample.scale_factor).repeat(2)
            results.bboxes = results.bboxes / scale
    return results_list


def suppressing(model: nn.Module, proposals: bool = False) -> list[Any]:
    """Returns the modules whose ``test_cfg`` suppresses overlapping boxes.

    Args:
        model: the bare detector.
        proposals: those that do so with proposed regions, not with final boxes.
    """
    return [
        module
        for name, module in model.named_modules()
        if ('rpn_head' in name.split('.')) == proposals
        and isinstance(vars(module).get('test_cfg'), dict)
        and 'nms' in module.test_cfg
    ]


def everywhere(name: str, instead: Any) -> Iterator[Change]:
    """Yields what puts another function in place of one of ``mmdet.models.utils.misc``.

    Args:
        name: of the function, in all modules that have imported it.
        instead: the other one.
    """
    from mmdet.models.utils import misc  # not at the top: classifiers

    own = getattr(misc, name)
    for module in list(sys.modules.values()):
        if getattr(module, '__dict__', {}).get(name) is own:
            yield module, name, instead


def attached() -> Iterator[Change]:
    """Yields what keeps in the graph what mmdet's heads detach before they decode it.

    That one function alone: elsewhere ``detach()`` may be what a gradient is made of,
    as in ``x + (step(x) - x).detach()``. And what copies features, as detectors do that
    read their classes from text chunk by chunk.
    """
    yield from everywhere('select_single_mlvl', _selected)
    for name in ('glip', 'grounding_dino'):
        module = sys.modules.get(f'mmdet.models.detectors.{name}')
        if module is not None:
            yield module, 'copy', SimpleNamespace(deepcopy=_in_graph)


def _in_graph(value: Any) -> Any:
    """Stands in for a deep copy, which is refused for tensors with a graph."""
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(_in_graph(each) for each in value)


def _selected(
    mlvl_tensors: Sequence[Tensor], batch_id: int, detach: bool = True
) -> list[Tensor]:
    return [each[batch_id] for each in mlvl_tensors]
