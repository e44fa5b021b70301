"""Focal losses.

Lin et al., "Focal loss for dense object detection", ICCV 2017. Logarithms are taken
of the logits, so large logits give the exact loss; the compiled kernels take them of
probabilities, and where those round to 0 in float32 (logits beyond about 17) they
give 87 times the weight instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import widen


def _class_weights(weight: Tensor, target: Tensor) -> Tensor | float:
    """Returns each sample's weight (n,) by its class, 1 outside the classes."""
    if weight.numel() == 0:
        return 1.0
    known = (target >= 0) & (target < len(weight))
    picked = widen(weight)[target.clamp(0, len(weight) - 1)]
    return torch.where(known, picked, torch.ones_like(picked))


def _is_class(target: Tensor, classes: int) -> Tensor:
    """Returns (n, classes), True at each sample's class; background has no True."""
    return target[:, None] == torch.arange(classes, device=target.device)


def _write_binary(
    out: Tensor, target: Tensor, weight: Tensor, positive: Tensor, negative: Tensor
) -> None:
    """Writes (n, classes) what each sample's class and what all others contribute."""
    values = torch.where(_is_class(target, out.shape[1]), positive, negative)
    weights = _class_weights(weight, target)
    out.copy_(values * (weights[:, None] if isinstance(weights, Tensor) else weights))


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the focal loss of one binary classification per class.

    Args:
        input: logits, (n, classes).
        target: classes, (n,), int64; ``classes`` means background.
        weight: weights of the classes, (classes,), or empty.
        output: where the losses go, (n, classes).
        gamma: exponent that lowers the loss of easy samples, at least 0.
        alpha: weight of the positives, in [0, 1]; negatives have ``1 - alpha``.
    """
    logits = widen(input)
    p, q = logits.sigmoid(), (-logits).sigmoid()
    positive = -alpha * q.pow(gamma) * F.logsigmoid(logits)
    negative = -(1 - alpha) * p.pow(gamma) * F.logsigmoid(-logits)
    _write_binary(output, target, weight, positive, negative)


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the derivatives of the losses by their logits, (n, classes).

    The other arguments are those of :func:`sigmoid_focal_loss_forward`.
    """
    logits = widen(input)
    p, q = logits.sigmoid(), (-logits).sigmoid()
    positive = alpha * q.pow(gamma) * (gamma * p * F.logsigmoid(logits) - q)
    negative = (1 - alpha) * p.pow(gamma) * (p - gamma * q * F.logsigmoid(-logits))
    _write_binary(grad_input, target, weight, positive, negative)


def _own_probability(softmax: Tensor, target: Tensor) -> Tensor:
    """Returns the probability (n,) of each sample's class, above 0.

    Samples to ignore, with a negative class, get that of class 0.
    """
    own = widen(softmax).gather(1, target.clamp(min=0)[:, None])[:, 0]
    return own.clamp(min=torch.finfo(torch.float32).tiny)


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the focal loss of one classification among all classes.

    Args:
        input: probabilities (mmcv has applied the softmax), (n, classes).
        target: classes, (n,), int64; negative ones are ignored.
        weight: weights of the classes, (classes,), or empty.
        output: where the losses go, (n,).
        gamma: exponent that lowers the loss of easy samples, at least 0.
        alpha: factor of the loss.
    """
    p = _own_probability(input, target)
    loss = -alpha * (1 - p).pow(gamma) * p.log() * _class_weights(weight, target)
    output.copy_(torch.where(target >= 0, loss, torch.zeros_like(loss)))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the derivatives of the losses by the logits.

    They go to ``grad_input``, (n, classes), and the factor that a sample's classes
    share goes to ``buff``, (n,). The rest is as in :func:`softmax_focal_loss_forward`.
    """
    p = _own_probability(input, target)
    factor = -(1 - p).pow(gamma)
    if gamma:
        # For gamma below 1 the power is infinite where p is 1 and log(p) is 0.
        rest = (1 - p).clamp(min=torch.finfo(torch.float32).tiny)
        factor = factor + gamma * rest.pow(gamma - 1) * p * p.log()
    factor = alpha * factor * _class_weights(weight, target)
    factor = torch.where(target >= 0, factor, torch.zeros_like(factor))
    buff.copy_(factor)
    own = _is_class(target, input.shape[1]).to(factor.dtype)
    grad_input.copy_(factor[:, None] * (own - input))
