"""FreeAT: the backward pass that updates the weights also updates the perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from ..attacks import PGD
from ..batch import float_images, resize_delta, with_images
from ..compat.checkpointing import checkpoints_give_input_gradients
from ..errors import ConfigError
from ..objective import Objective
from ..region import regions_in
from ..registry import ADVERSARIES
from ..threat import ThreatModel
from ..utils.models import bare_model, device_of
from ..utils.validation import positive_int
from .adversary import Adversary
from .mixed import read_objective


@ADVERSARIES.register_module()
class FreeAdversary(Adversary):
    """FreeAT: every replay of a batch updates the weights and the perturbation.

    Shafahi et al., "Adversarial Training for Free!", arXiv 1904.12843; as training for
    detectors in arXiv 2305.17438. The backward pass that feeds the weights also gives
    the gradient with respect to the image, so with the objective ``'total'`` an update
    costs what a normal one does. The perturbation carries over from replay to replay
    and from batch to batch (slot by slot, resized to the next image).

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255.
        step_size: step of the perturbation, by default eps (as in the papers).
        replays: updates per batch, m in the papers. Schedules count updates; give
            the number of passes over the data as usual divided by m.
        objective: ``'total'``, the loss that the weights are trained with, or names of
            loss terms for the perturbation alone; the latter costs a second backward
            pass that reaches only the image. The code of arXiv 2305.17438 uses
            ``'cls+reg'``.
        carry: ``'epoch'`` starts every pass over the data from a zero perturbation,
            which epoch checkpoints need not save; ``'run'`` carries it through the
            whole training, as the papers do, and saves it in checkpoints.
        **common: ``warmup_iters``, ``share`` (an image that stays clean leaves the
            perturbation of its slot as it is), ``awp_gamma`` and ``class_weighting`` of
            :class:`Adversary`; the code of arXiv 2305.17438 calls
            ``class_weighting='dataset'`` with the total loss its training type ``cwa``.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        replays: int = 4,
        objective: str | Sequence[str] = 'total',
        carry: str = 'epoch',
        **common: Any,
    ) -> None:
        if read_objective(objective)[1]:
            raise ConfigError(
                f'{type(self).__name__} has one backward pass for weights and '
                'perturbation, which no other objective can share: use PGDAdversary '
                'for a mixed one.'
            )
        # PGD's rules for a step size are the rules here too.
        step = PGD(norm, eps, step_size, num_steps=1, objective=objective)
        super().__init__(step.threat, step.objective, **common)
        self.replays = positive_int(replays, 'replays')
        if carry not in ('epoch', 'run'):
            raise ConfigError(f"carry={carry!r} is unknown: choose 'epoch' or 'run'.")
        self.carry = carry
        self._step_share = step.step_size / self.eps if self.eps else 0.0
        self._deltas: list[Tensor] = []

    @property
    def perturbs(self) -> bool:
        """Returns whether the settings let any image change."""
        return self.eps > 0

    def prepare(self, dataset: Any) -> None:
        """See :meth:`Adversary.prepare`."""
        super().prepare(dataset)
        if self.carry == 'epoch' and self.perturbs and self.updates_per_epoch == 1:
            raise ConfigError(
                'there is one update per pass over the data, and each pass starts '
                'from a zero perturbation, so no update would be adversarial: set '
                "carry='run' or more replays."
            )

    def update(
        self, model: Any, optim_wrapper: OptimWrapper, data_batch: dict, iteration: int
    ) -> dict[str, Tensor]:
        """See :meth:`Adversary.update`."""
        threat = self.threat_at(iteration)
        if self._resets_at(iteration):
            self._forget()
        images = float_images(data_batch, device_of(model))
        threats = [
            threat.within(region, image)
            for region, image in zip(regions_in(data_batch), images, strict=True)
        ]
        deltas = fitted(self._deltas, images, threats)
        changes = self._changes(model, data_batch, images, deltas, iteration)
        attacked = self.chosen(iteration, len(images))
        for i in attacked:
            perturbed = images[i].add_(changes[i]).clamp_(threat.lo, threat.hi)
            images[i] = perturbed.requires_grad_()
        leaves = [images[i] for i in attacked]
        batch = with_images(data_batch, images)
        if getattr(bare_model(model).data_preprocessor, 'batch_augments', None):
            # They edit boxes in place, which on a CPU are the loader's own; the next
            # replay needs them unchanged. (A sample's clone() shares its boxes.)
            batch['data_samples'] = deepcopy(data_batch['data_samples'])
        with self.learning(model, optim_wrapper, batch, iteration):
            if self.objective.terms is None or not leaves:
                outputs = model.train_step(batch, optim_wrapper=optim_wrapper)
                grads = [leaf.grad for leaf in leaves]
            else:
                outputs, grads = _step_with_own_objective(
                    model, optim_wrapper, batch, leaves, self.objective
                )
        if leaves and all(grad is None for grad in grads):
            raise ConfigError(
                f'no gradient reaches the image in {type(bare_model(model)).__name__}, '
                'so that training would not be adversarial: look for torch.no_grad or '
                'detach in its backbone.'
            )
        step_size = self._step_share * threat.eps
        for i, grad in zip(attacked, grads, strict=True):
            deltas[i] = advanced(threats[i], deltas[i], grad, step_size)
            self._follow(i, grad, iteration)
        self._deltas[: len(images)] = deltas
        return outputs

    def _forget(self) -> None:
        """Starts from a zero perturbation."""
        self._deltas = []

    def _changes(
        self,
        model: Any,
        data_batch: dict,
        images: Sequence[Tensor],
        deltas: list[Tensor],
        iteration: int,
    ) -> list[Tensor]:
        """Returns what is added to the clean images of a batch."""
        return deltas

    def _follow(self, slot: int, grad: Tensor | None, iteration: int) -> None:
        """Moves what a method carries beside the perturbation, after an update."""

    def _resets_at(self, iteration: int) -> bool:
        return (
            self.carry == 'epoch'
            and self.updates_per_epoch > 0
            and (iteration - self.pass_begun) % self.updates_per_epoch == 0
        )

    def state_dict(self, iteration: int) -> dict[str, Any]:
        """See :meth:`Adversary.state_dict`; empty where the next update resets it."""
        if self._resets_at(iteration):
            return {}
        return {'deltas': [delta.cpu() for delta in self._deltas]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Adversary.load_state_dict`."""
        self._deltas = list(state.get('deltas', ()))

    def describe(self) -> dict[str, Any]:
        """See :meth:`Adversary.describe`."""
        return {
            **super().describe(),
            'step_size': self._step_share * self.eps,
            'carry': self.carry,
        }


def fitted(
    carried: Sequence[Tensor], images: Sequence[Tensor], threats: Sequence[ThreatModel]
) -> list[Tensor]:
    """Fits the perturbations of the slots of a batch to its images.

    Args:
        carried: perturbations (C, h, w), of fewer slots or images of other sizes.
        images: images (C, H, W), which begin at zero where a slot has none.
        threats: the threat model of each image.
    """
    deltas = []
    for slot, (image, threat) in enumerate(zip(images, threats, strict=True)):
        if slot >= len(carried):
            deltas.append(torch.zeros_like(image))
            continue
        delta = carried[slot].to(image)
        if delta.shape != image.shape:
            # A larger copy of the same pixels has a larger l2 norm.
            delta = threat.project_delta(resize_delta(delta, image.shape))
        deltas.append(threat.inside(delta))
    return deltas


def advanced(
    threat: ThreatModel, delta: Tensor, grad: Tensor | None, step_size: float
) -> Tensor:
    """One step of a perturbation inside the ball.

    Not kept inside the pixel range: that differs for the next image in its slot.
    """
    if grad is None:  # no loss depended on this image
        return delta
    moved = threat.project_delta(threat.step(delta, threat.inside(grad), step_size))
    # A loss scaler skips updates with overflowing gradients; so does the perturbation.
    return torch.where(torch.isfinite(grad.sum()), moved, delta)


def _step_with_own_objective(
    model: Any,
    optim_wrapper: OptimWrapper,
    data_batch: dict,
    leaves: list[Tensor],
    objective: Objective,
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """The stock ``train_step`` with a second, input-only backward pass in the middle.

    mmengine's train_step does not expose its losses, so its four lines stand here.
    """
    bare = bare_model(model)
    with optim_wrapper.optim_context(model), checkpoints_give_input_gradients():
        data = bare.data_preprocessor(data_batch, True)
        losses = model._run_forward(data, mode='loss')
    target = objective(losses)
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    if scaler is not None:
        # Unscaled, half-precision gradients of the image underflow to zero.
        target = scaler.scale(target)
    grads = torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
    loss, log_vars = bare.parse_losses(losses)
    optim_wrapper.update_params(loss)
    return log_vars, list(grads)
