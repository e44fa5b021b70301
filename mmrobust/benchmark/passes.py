"""Forward and backward passes with nothing around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..objective import Objective
from .subject import Subject

_TOTAL = Objective()


def gradient(
    subject: Subject,
    images: Sequence[Tensor],
    samples: Sequence[Any],
    objective: Objective = _TOTAL,
) -> None:
    """One forward and input-only backward pass of images together.

    Inside :func:`mmrobust.objective.loss_mode`, which freezes the weights.
    """
    leaves = [image.detach().requires_grad_() for image in images]
    torch.autograd.grad(loss(subject, leaves, samples, objective), leaves)


def loss(
    subject: Subject,
    images: Sequence[Tensor],
    samples: Sequence[Any],
    objective: Objective = _TOTAL,
) -> Tensor:
    """One forward pass of images together."""
    inputs = torch.stack(list(images)) if subject.classifier else list(images)
    data = {'inputs': inputs, 'data_samples': list(samples)}
    data = subject.model.data_preprocessor(data)
    return objective(subject.model(**data, mode='loss'))
