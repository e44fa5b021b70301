"""AWP: an update learns at weights that a small step made worse, and puts them back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from ..batch import with_images
from ..objective import LossState
from ..utils.models import bare_model, device_of, replaced
from ..utils.seeding import undrawn


@contextmanager
def worse_weights(
    model: Any, optim_wrapper: OptimWrapper, data_batch: dict, gamma: float
) -> Iterator[None]:
    """Perturbs the weights against a batch until the optimizer steps.

    Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization",
    arXiv 2004.05884: each weight tensor w of at least two dimensions moves by
    ``gamma * ||w|| * g / ||g||`` along the gradient g of the loss of the batch. The
    update inside takes its gradients there. Before the optimizer makes its step with
    them the weights are what they were, bit for bit, so that weight decay and the
    optimizer see them alone.

    Costs a forward and backward pass and a copy of the weights. The pass draws what the
    update will draw, and leaves no trace but the perturbation.

    Args:
        model: the model or its distributed wrapper, in training mode.
        optim_wrapper: of the update, whose gradients do not accumulate.
        data_batch: what the update learns from.
        gamma: size of the perturbation as a share of the weights'.
    """
    bare = bare_model(model)
    weights = [w for w in bare.parameters() if w.requires_grad and w.dim() > 1]
    grads = _gradients(model, optim_wrapper, data_batch, weights)
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            if grad is not None:
                largest = grad.abs().max().clamp_min(torch.finfo(grad.dtype).tiny)
                grad = grad / largest  # squares of small ones underflow
                length = gamma * weight.norm() / grad.norm().clamp_min(1e-12)
                # A gradient that is not finite moves nothing.
                weight.add_(torch.nan_to_num(length * grad, 0.0, 0.0, 0.0))

    def put_back() -> None:
        with torch.no_grad():
            while before:
                weights[len(before) - 1].copy_(before.pop())

    own_step = optim_wrapper.step

    def step(**kwargs: Any) -> None:
        put_back()
        own_step(**kwargs)

    try:
        with replaced(optim_wrapper, 'step', step):
            yield
    finally:
        put_back()


def _gradients(
    model: Any, optim_wrapper: OptimWrapper, data_batch: dict, weights: Sequence[Tensor]
) -> list[Tensor | None]:
    """Returns gradients of the update's loss, averaged over all processes."""
    bare = bare_model(model)
    images = [image.detach() for image in data_batch['inputs']]
    batch = with_images(data_batch, images)
    # Batch augmentations edit boxes in place.
    batch['data_samples'] = deepcopy(data_batch['data_samples'])
    memory = LossState(bare, normalisations=True)
    own = [(weight, weight.grad) for weight in bare.parameters()]
    for weight, _ in own:
        weight.grad = None
    with undrawn(device_of(bare)):
        # As train_step does, which does not tell its loss.
        with optim_wrapper.optim_context(model):
            data = bare.data_preprocessor(batch, True)
            losses = model._run_forward(data, mode='loss')
        loss, _ = bare.parse_losses(losses)
        scaler = getattr(optim_wrapper, 'loss_scaler', None)
        # Unscaled, half-precision gradients underflow.
        (loss if scaler is None else scaler.scale(loss)).backward()
    grads = [weight.grad for weight in weights]
    for weight, grad in own:
        weight.grad = grad
    memory.restore(thorough=True)
    return grads
