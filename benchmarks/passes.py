"""Forward and backward passes with nothing around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmrobust.objective import Objective
from mmrobust.objective.inputs import Inputs
from torch import Tensor

from benchmarks.subject import Subject

_TOTAL = Objective()


def gradient(
    subject: Subject,
    images: Sequence[Tensor],
    samples: Sequence[Any],
    objective: Objective = _TOTAL,
    prepare: Inputs | None = None,
) -> None:
    """One forward and input-only backward pass of images together.

    Inside :func:`mmrobust.objective.loss_mode`, which freezes the weights.
    """
    leaves = [image.detach().requires_grad_() for image in images]
    torch.autograd.grad(loss(subject, leaves, samples, objective, prepare), leaves)


def loss(
    subject: Subject,
    images: Sequence[Tensor],
    samples: Sequence[Any],
    objective: Objective = _TOTAL,
    prepare: Inputs | None = None,
) -> Tensor:
    """One forward pass of images together.

    Args:
        subject: whose model it is.
        images: images (C, H, W) in pixel units.
        samples: their ground truth.
        objective: what is summed up.
        prepare: does the work on the samples once for several passes.
    """
    if prepare is not None:
        return objective(subject.model(**prepare(images, samples), mode='loss'))
    inputs = torch.stack(list(images)) if subject.classifier else list(images)
    data = {'inputs': inputs, 'data_samples': list(samples)}
    data = subject.model.data_preprocessor(data)
    return objective(subject.model(**data, mode='loss'))
