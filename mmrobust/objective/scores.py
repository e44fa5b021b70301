"""Replaces a detector's classification loss by other functions of the same scores.

The one place that nearly all of mmdet's heads have in common is the call
``loss_cls(scores, targets, weights)``. Here the value of that call is replaced, so that
whatever the head does with its classification loss (adding levels, stages, decoder
layers under their names), it does with another function of the same scores.

Scores (M, num_classes + 1) belong to a softmax whose last column is background; scores
(M, num_classes) are sigmoid logits, one yes or no per class, and background is a no to
all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.models import replaced
from .class_weights import classifying_heads
from .texts import TokenScores, reads_text

# Of the logits (M, num_classes [+ 1]) of the predictions that are assigned to objects,
# their classes (M,), and num_classes: values (M, ...), to be summed over M.
Measure = Callable[[Tensor, Tensor, int], Tensor]

ADVICE = 'use an objective on whole losses, like total or vanish'


def log_background(scores: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns the log-probability (M,) that a prediction is background.

    For a softmax that of its last column; for sigmoids that of a no to every class,
    ``sum_c log(1 - p_c)``.
    """
    if scores.shape[1] > num_classes:
        return scores.log_softmax(1)[:, num_classes]
    return -F.softplus(scores).sum(1)


def margin(scores: Tensor, labels: Tensor, num_classes: int, targets: Tensor) -> Tensor:
    """Adversarial minus true logit (M,) where the true class still has the largest.

    0 elsewhere, as in DAG, which drops fooled predictions; so never above 0.
    """
    rows = torch.arange(len(scores), device=scores.device)
    difference = scores[rows, targets.to(labels)[labels]] - scores[rows, labels]
    correct = scores.argmax(1) == labels if len(scores) else labels == labels
    return torch.where(correct, difference, torch.zeros_like(difference))


# How many false predictions objects are compared with: several, since the network
# suppresses a single one easily; and the difference of logits that counts much.
FALSE_ONES, _SOFTNESS = 20, 3.0


def outranked(true: Tensor, false: Tensor) -> Tensor:
    """Returns how far the highest false predictions are above those of objects.

    ``-mean over objects and false predictions of 3 * softplus((true - false) / 3)``:
    what counts is the order, as for AP, so that an object that is far below the false
    predictions already does not draw the search away from others.

    Args:
        true: logits (m,) of objects.
        false: logits (n,) of false predictions, of which the 20 highest count.

    Returns:
        A scalar, at most 0 if there is an object. Without objects it is the mean of the
        false logits, without false predictions minus that of the true ones.
    """
    highest = false.topk(min(FALSE_ONES, len(false))).values
    if not len(true) or not len(false):
        return torch.cat([-true, highest]).sum() / max(1, len(true) + len(highest))
    lead = (true[:, None] - highest[None]) / _SOFTNESS
    return -_SOFTNESS * F.softplus(lead).mean()


def ranking_of_assigned(scores: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns :func:`outranked` of class logits, by what the head assigns to objects.

    What :func:`mmrobust.objective.predictions.ranking` is for predictions: the logits
    of the true classes of predictions that stand for objects, against those of other
    classes and of all other predictions.

    Args:
        scores: logits (M, num_classes [+ 1]).
        labels: classes (M,), ``num_classes`` for background.
        num_classes: of the detector.
    """
    if scores.shape[1] > num_classes:
        chances = scores.log_softmax(1)[:, :num_classes]
        scores = chances - (-chances.exp()).clamp(min=-1 + 1e-6).log1p()
    true = F.one_hot(labels, num_classes + 1)[:, :num_classes].bool()
    return outranked(scores[true], scores[~true])[None]


def class_scores(scores: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class probabilities in the row of the true class: (M, num_classes, num_classes).

    Their sum over M is what :func:`ground_truth.likely_classes` wants.
    """
    softmax = scores.shape[1] > num_classes
    chances = scores.softmax(1)[:, :num_classes] if softmax else scores.sigmoid()
    rows = F.one_hot(labels, num_classes).to(chances)
    return rows[:, :, None] * chances[:, None, :]


@contextmanager
def measured(
    model: nn.Module, measure: Measure, advice: str = ADVICE, whole: bool = False
) -> Iterator[None]:
    """Puts a measure in place of every classification loss while the context lasts.

    Its sum over the predictions of a call that are assigned to objects is not divided
    by anything. Calls whose elements a head asks for (``reduction_override='none'``)
    keep their value: PAA and the like assign by them.

    Args:
        model: the bare detector.
        measure: of logits, labels and the number of classes.
        advice: what to do where it does not work, for the message.
        whole: measure all predictions that count, also those of background.

    Raises:
        ConfigError: if no head's scores can be read this way.
    """
    heads = [head for head in classifying_heads(model) if not _is_ssd(head)]
    ssd = [module for module in model.modules() if _is_ssd(module)]
    if not heads and not ssd:
        raise ConfigError(
            'this objective reads the scores that heads give their `loss_cls`, and '
            f'{type(model).__name__} has no such head: {advice}.'
        )
    tokens = TokenScores(model) if reads_text(model) else None
    readers = {
        id(h.loss_cls): _Reader(h.num_classes, measure, whole, tokens) for h in heads
    }
    with ExitStack() as stack:
        for loss in {id(head.loss_cls): head.loss_cls for head in heads}.values():
            handle = loss.register_forward_hook(readers[id(loss)], with_kwargs=True)
            stack.callback(handle.remove)
        if tokens is not None:
            stack.enter_context(tokens.followed())
        stack.enter_context(_ssd_loss(model, partial(_measured_sum, measure, whole)))
        yield
    calls = [reader.calls for reader in readers.values()]
    if readers and not any(read for read, _ in calls) and any(n for _, n in calls):
        raise ConfigError(
            f'{type(model).__name__} asks its `loss_cls` for elements and sums them '
            f'in its own way, which this objective cannot follow: {advice}.'
        )


class _Reader:
    """Forward hook of a classification loss, which returns the measure instead."""

    def __init__(
        self,
        num_classes: int,
        measure: Measure,
        whole: bool,
        tokens: TokenScores | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.measure = measure
        self.whole = whole
        self.tokens = tokens  # of a detector that reads text
        self.calls = (0, 0)  # measured, and left alone

    def __call__(
        self, module: nn.Module, args: tuple, kwargs: dict, loss: Any
    ) -> Tensor | None:
        read, left = self.calls
        by_element = kwargs.get('reduction_override') == 'none'
        # Not by its shape: a reduced loss is of shape (1,) where a head averages the
        # divisor over processes.
        vector = getattr(module, 'reduction', 'mean') == 'none' and not kwargs.get(
            'reduction_override'
        )
        if by_element or not isinstance(loss, Tensor) or loss.dim() > 1:
            # Also Seesaw loss, which returns several.
            self.calls = read, left + 1
            return None
        self.calls = read + 1, left
        if self.tokens is not None:
            images = self.tokens.by_class(*_given(args, kwargs))
            parts = [self._of_image(*image)[0].sum(0) for image in images]
            return torch.stack(parts).sum(0)
        scores, labels, weights = _arguments(module, args, kwargs, self.num_classes)
        values, chosen = self._of_image(scores, labels, weights)
        if not vector:
            return values.sum(0)
        # A loss that is not reduced, as YOLACT's: a value for each prediction.
        if values.dim() > 1:
            raise ConfigError(
                'the likely classes cannot be read off a classification loss that is '
                "not reduced: set target='next' or a target_class."
            )
        return values.new_zeros(len(scores)).index_put((chosen[: len(values)],), values)

    def _of_image(
        self, scores: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the measure, and which predictions it is of."""
        count = self.num_classes if self.tokens is None else scores.shape[1]
        chosen = _counted(labels, weights, count, self.whole)
        return self.measure(scores[chosen], labels[chosen], count), chosen


def _given(args: tuple, kwargs: dict) -> tuple[Tensor, Any, Tensor | None]:
    """Returns scores, targets and weights of a call, by whatever names they have."""
    given = dict(zip(('pred', 'target', 'weight'), args, strict=False))
    given |= {key.replace('cls_score', 'pred'): v for key, v in kwargs.items()}
    target = given.get('target', given.get('label'))
    return given['pred'], target, given.get('weight', given.get('label_weight'))


def _arguments(
    module: Any, args: tuple, kwargs: dict, num_classes: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (N, num_classes [+ 1]), labels (N,) and weights (N,) of a call.

    Targets of mmdet's losses are labels with ``num_classes`` for background, a pair of
    labels and qualities, or a row per prediction that is 0 except for its class.
    """
    scores, target, weights = _given(args, kwargs)
    target = target[0] if isinstance(target, (tuple, list)) else target
    columns = scores.shape[-1]
    if columns not in (num_classes, num_classes + 1) or target is None:
        raise ConfigError(
            f'{type(module).__name__} gets scores of shape {tuple(scores.shape)} for '
            f'{num_classes} classes, in which this objective does not find the '
            f'classes: {ADVICE}.'
        )
    if target.shape == scores.shape and target.is_floating_point():
        rows = target.reshape(-1, columns)[:, :num_classes]
        best, labels = rows.max(1) if rows.numel() else (rows.sum(1), rows.sum(1))
        target = labels.long().masked_fill(best <= 0, num_classes)
    scores = scores.reshape(-1, columns)
    if getattr(module, 'activated', False):  # TOOD's are probabilities already
        scores = scores.logit(eps=1e-6)
    if weights is not None:
        weights = weights.reshape(len(scores), -1).amax(1) if len(scores) else None
    return scores, target.reshape(-1).long(), weights


def _counted(
    labels: Tensor, weights: Tensor | None, num_classes: int, whole: bool
) -> Tensor:
    """Indices of the predictions that count, of those that stand for an object."""
    chosen = (labels >= 0) & (labels < num_classes + whole)
    if weights is not None:
        chosen = chosen & (weights > 0)
    return chosen.nonzero().squeeze(1)


def _is_ssd(module: Any) -> bool:
    from mmdet.models.dense_heads import SSDHead  # not at the top: classifiers

    return isinstance(module, SSDHead)


# Of scores, labels and weights of an image's anchors, and num_classes.
SSDLoss = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@contextmanager
def _ssd_loss(model: nn.Module, loss: SSDLoss) -> Iterator[None]:
    """Replaces the classification loss of SSD, which is computed in a method."""
    with ExitStack() as stack:
        heads: list[Any] = [m for m in model.modules() if _is_ssd(m)]
        for head in heads:
            changed = partial(_with_loss, head, head.loss_by_feat_single, loss)
            stack.enter_context(replaced(head, 'loss_by_feat_single', changed))
        yield


def _with_loss(
    head: Any,
    original: Callable,
    loss: SSDLoss,
    cls_score: Tensor,
    bbox_pred: Tensor,
    anchor: Tensor,
    labels: Tensor,
    label_weights: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    rest = (bbox_pred, anchor, labels, label_weights, *args)
    _, loss_bbox = original(cls_score, *rest, **kwargs)
    return loss(cls_score, labels, label_weights, head.num_classes)[None], loss_bbox


def _measured_sum(
    measure: Measure,
    whole: bool,
    scores: Tensor,
    labels: Tensor,
    weights: Tensor,
    num_classes: int,
) -> Tensor:
    chosen = _counted(labels, weights, num_classes, whole)
    return measure(scores[chosen], labels[chosen], num_classes).sum(0)


def _all_anchors(
    scores: Tensor, labels: Tensor, weights: Tensor, num_classes: int
) -> Tensor:
    return (F.cross_entropy(scores, labels, reduction='none') * weights).sum()


def negatives_unmined(model: nn.Module) -> AbstractContextManager[None]:
    """Makes SSD's classification loss the sum over all of its anchors.

    It counts three negatives for every positive, so that without objects its loss
    would be 0 whatever the image.
    """
    return _ssd_loss(model, _all_anchors)
