"""A classifier as AutoAttack takes it: [0, 1] images in, logits out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class Logits(nn.Module):
    """Runs a classifier's own preprocessing and network on images in [0, 1].

    Args:
        model: the bare classifier; its data preprocessor takes pixel units of 0-255.

    Attributes:
        forwards: images that went forwards so far.
        backwards: images whose logits were differentiated so far.
        detached: whether the logits ever failed to depend on the images.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0
        self.detached = False

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits (N, K) of images (N, C, H, W), in the loader's channels.

        Raises:
            ConfigError: if the model gives anything else.
        """
        data = self.model.data_preprocessor({'inputs': images * 255}, False)
        logits = self.model(data['inputs'], mode='tensor')
        if not isinstance(logits, Tensor) or logits.shape[:1] != images.shape[:1]:
            found = (
                tuple(logits.shape)
                if isinstance(logits, Tensor)
                else (type(logits).__name__)
            )
            raise ConfigError(
                f'{type(self.model).__name__} gives {found} for {len(images)} images '
                'and not their logits (N, classes), so AutoAttack cannot work: use a '
                'classifier with one label per image.'
            )
        if logits.ndim != 2:
            raise ConfigError(
                f'{type(self.model).__name__} gives values of shape '
                f'{tuple(logits.shape)} and not logits (N, classes): use a classifier '
                'with one label per image.'
            )
        self.forwards += len(images)
        logits = logits.float()
        if images.requires_grad and torch.is_grad_enabled():
            if not logits.requires_grad:
                # autograd would end the run; a gradient of zero is what it means.
                self.detached = True
                logits = logits + 0 * images.flatten(1).sum(dim=1, keepdim=True)
            logits.register_hook(self._count_backward)
        # Square writes into what it gets, which may be the model's own tensor.
        return logits.clone()

    def _count_backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode without weight gradients, and back afterwards.

    FAB differentiates with ``backward``, which would fill the weights' gradients.
    """
    modes = {module: module.training for module in model.modules()}
    wanted = {weight: weight.requires_grad for weight in model.parameters()}
    model.eval()
    model.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for weight, requires_grad in wanted.items():
            weight.requires_grad_(requires_grad)


def count_zero_gradients(logits: Logits, images: Tensor, labels: Tensor) -> int:
    """Counts images at which the margin of the label has no gradient at all.

    The margin and not the cross entropy, whose gradient also vanishes where a healthy
    model is certain.
    """
    point = images.clone().requires_grad_()
    with torch.enable_grad():
        scores = logits(point)
        own = scores.gather(1, labels[:, None])
        others = scores.scatter(1, labels[:, None], -torch.inf)
        margin = own.squeeze(1) - others.amax(dim=1)
        (grad,) = torch.autograd.grad(margin.sum(), point)
    return int((grad.flatten(1) == 0).all(dim=1).sum())
