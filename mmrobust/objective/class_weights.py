"""Class-weighted classification losses for the class-wise attack A_cwa.

Source: the code of arXiv 2305.17438; the attack goes back to Chen et al., "Class-Aware
Robust Adversarial Training for Object Detection", CVPR 2021.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch import Tensor, nn

from ..errors import ConfigError
from .texts import TokenScores, count_of_text, reads_text


def class_weights(counts: Sequence[int]) -> Tensor:
    """Inverse class frequency, with mean 1 over the classes that occur.

    Args:
        counts: objects of each class, (num_classes,). A class without any has weight 1;
            the published code divides by zero there.
    """
    numbers = torch.as_tensor(counts, dtype=torch.float32)
    present = numbers > 0
    weights = torch.ones_like(numbers)
    if present.any():
        inverse = numbers.sum() / numbers[present]
        weights[present] = inverse / inverse.mean()
    return weights


def count_classes(datasets: Iterable[Any], num_classes: int) -> list[int]:
    """Counts the objects of every class in annotations of mmdet, crowds included."""
    counts = [0] * num_classes
    for dataset in datasets:
        for index in range(len(dataset)):
            for instance in dataset.get_data_info(index).get('instances', ()):
                counts[instance['bbox_label']] += 1
    return counts


def weights_for_evaluation(train_loader: Any, dataset: Any) -> tuple[Tensor, list[str]]:
    """Weights the classes of an evaluation by their counts in the training set.

    The published attack A_cwa should do so too; its code takes the evaluated set.

    Args:
        train_loader: config of the training data loader, or None.
        dataset: the evaluated dataset, which is counted if the other one cannot be.

    Returns:
        Weights (num_classes,), and notes for the report.
    """
    classes = _object_classes(dataset)
    notes = []
    try:
        train = MMENGINE_DATASETS.build(train_loader['dataset'])
        if _object_classes(train) != classes:
            raise ValueError('the training set has other classes')
        counts = count_classes([train], len(classes))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        notes.append(
            'class weights of cwa are those of the evaluated set, because the '
            f'training set could not be used ({error})'
        )
        print_log(notes[0], logger='current', level=logging.WARNING)
        counts = count_classes([dataset], len(classes))
    return class_weights(counts), notes


def _object_classes(dataset: Any) -> Any:
    """Returns the classes of boxes, after which a panoptic dataset has others."""
    return dataset.metainfo.get('thing_classes', dataset.metainfo['classes'])


def classes_of(model: nn.Module, samples: Sequence[Any] = ()) -> int:
    """Returns the number of classes of a detector's labels.

    Args:
        model: the bare detector.
        samples: of images; their text decides, where the detector reads that.

    Raises:
        ConfigError: if its heads, or the images' texts, do not agree on one.
    """
    if samples and reads_text(model):
        return count_of_text(model, samples)
    counts = {head.num_classes for head in classifying_heads(model)}
    for owner in (model, getattr(model, 'roi_head', None)):
        head: Any = getattr(owner, 'bbox_head', None)
        if not counts and isinstance(getattr(head, 'num_classes', None), int):
            counts = {head.num_classes}
    if len(counts) != 1:
        raise ConfigError(
            'class weights and objectives that change labels need heads for the same '
            f'classes, and {type(model).__name__} has '
            + (f'heads for {sorted(counts)} classes.' if counts else 'none.')
        )
    return counts.pop()


def classifying_heads(model: nn.Module) -> list[Any]:
    """Heads that tell classes apart by a loss module ``loss_cls``; no RPN."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and isinstance(getattr(module, 'loss_cls', None), nn.Module)
        and 'RPN' not in type(module).__name__
    ]


@contextmanager
def weighted_classification_loss(model: nn.Module, weights: Tensor) -> Iterator[None]:
    """Weights the classification loss of every head by class while the context lasts.

    The loss modules are asked for their elementwise losses, which are then weighted
    and reduced as the head had asked. A loss matrix (N, num_classes), as focal loss
    gives, is weighted column by column; a vector (N,), as cross entropy gives, by the
    class of its target, background having weight 1, and one by tokens of a text by the
    class of each token. Heads with another number of classes (an RPN's objectness) are
    left alone. A bounded loss is weighted before it is bounded, as in the code of arXiv
    2305.17438.

    Args:
        model: the bare detector.
        weights: (num_classes,), from :func:`class_weights`.

    Raises:
        ConfigError: if the model has no head whose classification loss is a module
            that can be weighted.
    """
    tokens = TokenScores(model) if reads_text(model) else None
    heads = classifying_heads(model)
    if tokens is None:
        heads = [head for head in heads if head.num_classes == len(weights)]
    if not heads:
        raise ConfigError(
            'class weights need a head with a `loss_cls` module for '
            f'{len(weights)} classes, and {type(model).__name__} has none: use cls or '
            'reg.'
        )
    with ExitStack() as stack:
        if tokens is not None:
            stack.enter_context(tokens.followed())
        losses = {id(loss): loss for loss in map(_inner_loss, heads)}
        for loss in losses.values():
            weighting = _Weighting(weights, tokens)
            for handle in (
                loss.register_forward_pre_hook(weighting.before, with_kwargs=True),
                loss.register_forward_hook(weighting.after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield


def _inner_loss(head: Any) -> nn.Module:
    """The module that computes a head's elementwise losses."""
    from ..models import BoundedLoss  # not at the top: it needs mmdet

    loss: nn.Module = head.loss_cls
    return loss.loss if isinstance(loss, BoundedLoss) else loss


class _Weighting:
    """Turns one call of a loss module into its class-weighted version."""

    def __init__(self, weights: Tensor, tokens: TokenScores | None = None) -> None:
        self.weights = weights
        self.tokens = tokens  # of a detector that reads text
        self.avg_factor: Any = None
        self.reduction: str | None = None

    def before(
        self, module: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        kwargs = dict(kwargs)
        if len(args) > 3:  # (pred, target, weight, avg_factor) by position
            kwargs['avg_factor'], args = args[3], args[:3]
        self.avg_factor = kwargs.pop('avg_factor', None)
        reduction = kwargs.get('reduction_override') or getattr(
            module, 'reduction', 'mean'
        )
        self.reduction = reduction
        kwargs['reduction_override'] = 'none'
        return args, kwargs

    def after(
        self, module: nn.Module, args: tuple, kwargs: dict, loss: Tensor
    ) -> Tensor:
        weights = self.weights.to(loss)
        if self.tokens is not None:
            loss = loss * self.tokens.token_weights(weights, loss.numel())
        elif loss.dim() == 2 and loss.shape[1] == len(weights):
            loss = loss * weights
        elif loss.dim() == 1:
            named: Any = kwargs.get('target', kwargs.get('label'))
            target = args[1] if len(args) > 1 else named
            target = target[0] if isinstance(target, tuple) else target
            padded = torch.cat([weights, weights.new_ones(1)])  # background, the last
            known = target.long().clamp(0, len(weights))
            loss = loss * padded[known]
        else:
            raise ConfigError(
                f'{type(module).__name__} gives losses of shape {tuple(loss.shape)}, '
                'which cannot be weighted by class: use cls or reg.'
            )
        if self.reduction == 'none':
            return loss
        if self.avg_factor is None:
            return loss.mean() if self.reduction == 'mean' else loss.sum()
        # As mmdet's weight_reduce_loss: a sum ignores the factor only by raising.
        return loss.sum() / (self.avg_factor + torch.finfo(torch.float32).eps)
