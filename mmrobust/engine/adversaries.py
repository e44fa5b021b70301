"""Adversaries for training: what happens to a batch before the weights are updated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ..attacks import PGD
from ..attacks.base import positive_int
from ..batch import float_images, resize_delta, with_images
from ..errors import ConfigError
from ..objective import LossOracle, Objective, loss_mode
from ..registry import ADVERSARIES
from ..seeding import derive_seed
from ..threat import ThreatModel, to_pixels


class Adversary(ABC):
    """Makes a batch adversarial and lets the stock ``model.train_step`` learn from it.

    Args:
        norm: ``'linf'`` or ``'l2'``.
        eps: radius in pixel units of 0-255, or text like ``'4/255'``.
        objective: what the perturbation maximises; ``'total'`` or names of loss terms.
        warmup_iters: iterations over which eps grows linearly to its full size.

    Attributes:
        replays: how often the loop hands over each batch.
    """

    replays = 1

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        objective: str | Sequence[str] = 'total',
        warmup_iters: int = 0,
    ) -> None:
        self.norm = norm
        self.eps = ThreatModel(norm, to_pixels(eps)).eps
        self.objective = Objective(objective)
        if self.objective.needs_class_weights:
            raise ConfigError(
                "the objective 'cwa' is an attack for evaluation; train with 'total', "
                "'cls', 'reg' or a list of loss names."
            )
        if warmup_iters < 0:
            raise ConfigError(f'warmup_iters={warmup_iters} must not be negative.')
        self.warmup_iters = warmup_iters

    def threat_at(self, iteration: int) -> ThreatModel:
        """The threat model of an iteration, smaller while eps warms up."""
        share = min(1.0, (iteration + 1) / max(self.warmup_iters, 1))
        return ThreatModel(self.norm, self.eps * share)

    @abstractmethod
    def train_step(
        self,
        model: Any,
        optim_wrapper: OptimWrapper,
        data_batch: dict,
        iteration: int,
    ) -> dict[str, Tensor]:
        """Perturbs the batch and updates the weights once.

        Args:
            model: the detector or its distributed wrapper, in training mode.
            optim_wrapper: updates the weights.
            data_batch: what the loader yields; it is not changed.
            iteration: number of updates made so far.

        Returns:
            The log variables of ``model.train_step``.
        """

    def state_dict(self, iteration: int) -> dict[str, Any]:
        """What has to be saved to continue exactly after ``iteration`` updates."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restores what :meth:`state_dict` gave."""

    def describe(self) -> dict[str, Any]:
        """The settings that define the adversary, kept in every checkpoint's meta."""
        return {
            'type': type(self).__name__,
            'norm': self.norm,
            'eps': self.eps,
            'objective': self.objective.name,
            'replays': self.replays,
            'warmup_iters': self.warmup_iters,
        }


@ADVERSARIES.register_module()
class FreeAdversary(Adversary):
    """FreeAT: every replay of a batch updates the weights and the perturbation.

    Shafahi et al., "Adversarial Training for Free!", arXiv 1904.12843; as training for
    detectors in arXiv 2305.17438. The backward pass that feeds the weights also gives
    the gradient with respect to the image, so with the objective ``'total'`` an update
    costs what a normal one does. The perturbation carries over from replay to replay
    and from batch to batch (slot by slot, resized to the next image).

    Args:
        norm: ``'linf'`` or ``'l2'``.
        eps: radius in pixel units of 0-255.
        step_size: step of the perturbation, by default eps (as in the papers).
        replays: updates per batch, m in the papers. Schedules count updates; give
            the number of passes over the data as usual divided by m.
        objective: ``'total'``, the loss that the weights are trained with, or names of
            loss terms for the perturbation alone; the latter costs a second backward
            pass that reaches only the image. The code of arXiv 2305.17438 uses
            ``['loss_cls', 'loss_bbox']``.
        carry: ``'epoch'`` starts every pass over the data from a zero perturbation,
            so that epoch checkpoints resume exactly; ``'run'`` carries it through the
            whole training, as the papers do, and saves it in checkpoints.
        warmup_iters: updates over which eps grows linearly to its full size.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        replays: int = 4,
        objective: str | Sequence[str] = 'total',
        carry: str = 'epoch',
        warmup_iters: int = 0,
    ) -> None:
        super().__init__(norm, eps, objective, warmup_iters)
        self.replays = positive_int(replays, 'replays')
        if carry not in ('epoch', 'run'):
            raise ConfigError(f"carry={carry!r} is unknown: choose 'epoch' or 'run'.")
        # PGD's rules for a step size are the rules here too.
        size = self.eps if step_size is None else step_size
        size = PGD(norm, f'{self.eps}/255', size, num_steps=1).step_size
        self._step_share = size / self.eps if self.eps else 0.0
        self.carry = carry
        self.updates_per_epoch = 0
        self._deltas: list[Tensor] = []

    def train_step(
        self,
        model: Any,
        optim_wrapper: OptimWrapper,
        data_batch: dict,
        iteration: int,
    ) -> dict[str, Tensor]:
        """See :meth:`Adversary.train_step`."""
        threat = self.threat_at(iteration)
        if self._resets_at(iteration):
            self._deltas = []
        images = float_images(data_batch, _device(model))
        deltas = self._fit(images, threat)
        leaves = [
            (image + delta).clamp_(threat.lo, threat.hi).requires_grad_()
            for image, delta in zip(images, deltas, strict=True)
        ]
        batch = with_images(data_batch, leaves)
        if getattr(_bare(model).data_preprocessor, 'batch_augments', None):
            # They edit boxes in place, which on a CPU are the loader's own; the next
            # replay needs them unchanged. (A sample's clone() shares its boxes.)
            batch['data_samples'] = deepcopy(data_batch['data_samples'])
        if self.objective.terms is None:
            outputs = model.train_step(batch, optim_wrapper=optim_wrapper)
            grads = [leaf.grad for leaf in leaves]
        else:
            outputs, grads = _step_with_own_objective(
                model, optim_wrapper, batch, leaves, self.objective
            )
        if all(grad is None for grad in grads):
            raise ConfigError(
                f'no gradient reaches the image in {type(_bare(model)).__name__}, so '
                'that training would not be adversarial: look for torch.no_grad or '
                'detach in its backbone.'
            )
        step_size = self._step_share * threat.eps
        self._deltas[: len(images)] = [
            _advance(threat, delta, grad, step_size)
            for delta, grad in zip(deltas, grads, strict=True)
        ]
        return outputs

    def _resets_at(self, iteration: int) -> bool:
        return (
            self.carry == 'epoch'
            and self.updates_per_epoch > 0
            and iteration % self.updates_per_epoch == 0
        )

    def _fit(self, images: Sequence[Tensor], threat: ThreatModel) -> list[Tensor]:
        deltas = []
        for slot, image in enumerate(images):
            if slot >= len(self._deltas):
                deltas.append(torch.zeros_like(image))
                continue
            delta = self._deltas[slot].to(image)
            if delta.shape != image.shape:
                # A larger copy of the same pixels has a larger l2 norm.
                delta = threat.project_delta(resize_delta(delta, image.shape))
            deltas.append(delta)
        return deltas

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


@ADVERSARIES.register_module()
class PGDAdversary(Adversary):
    """PGD-AT: an attack of ``num_steps`` steps on each batch, then one update.

    Madry et al., arXiv 1706.06083. With ``num_steps=1`` and a random start it is fast
    adversarial training (Wong et al., arXiv 2001.03994). The attack sees the model as
    it is deployed (BatchNorm statistics fixed, no dropout); the update is the stock
    one in training mode.

    Args:
        norm: ``'linf'`` or ``'l2'``.
        eps: radius in pixel units of 0-255.
        step_size: step in pixel units, by default ``2.5 * eps / num_steps`` and at
            most eps; for one step 1.25 * eps is the value of arXiv 2001.03994.
        num_steps: steps of the inner attack, at least 1.
        objective: ``'total'``, ``'cls'``, ``'reg'`` or names of loss terms.
        random_start: start at a random point of the ball.
        warmup_iters: updates over which eps grows linearly to its full size.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        num_steps: int = 3,
        objective: str | Sequence[str] = 'total',
        random_start: bool = True,
        warmup_iters: int = 0,
    ) -> None:
        super().__init__(norm, eps, objective, warmup_iters)
        self._attack = PGD(
            norm,
            f'{self.eps}/255',
            step_size,
            num_steps,
            random_start=random_start,
            keep_best=False,
        )
        self._step_share = self._attack.step_size / self.eps if self.eps else 0.0

    def train_step(
        self,
        model: Any,
        optim_wrapper: OptimWrapper,
        data_batch: dict,
        iteration: int,
    ) -> dict[str, Tensor]:
        """See :meth:`Adversary.train_step`."""
        bare, device = _bare(model), _device(model)
        images = float_images(data_batch, device)
        samples = [sample.to(device) for sample in data_batch['data_samples']]
        attack = self._attack
        attack.threat = self.threat_at(iteration)
        attack.step_size = self._step_share * attack.threat.eps
        seed = derive_seed('pgd-at', torch.initial_seed(), get_rank(), iteration)
        with loss_mode(bare):
            oracle = LossOracle(
                bare, data_batch, samples, self.objective, per_image=False
            )
            adversarial = attack.perturb(
                oracle, images, torch.Generator().manual_seed(seed)
            )
        return model.train_step(
            with_images(data_batch, adversarial), optim_wrapper=optim_wrapper
        )

    def describe(self) -> dict[str, Any]:
        """See :meth:`Adversary.describe`."""
        return {
            **super().describe(),
            'step_size': self._step_share * self.eps,
            'num_steps': self._attack.num_steps,
            'random_start': self._attack.random_start,
        }


def _bare(model: nn.Module) -> Any:
    return model.module if is_model_wrapper(model) else model


def _device(model: nn.Module) -> torch.device:
    return next(_bare(model).parameters()).device


def _advance(
    threat: ThreatModel, delta: Tensor, grad: Tensor | None, step_size: float
) -> Tensor:
    """One step of a perturbation inside the ball.

    Not kept inside the pixel range: that differs for the next image in its slot.
    """
    if grad is None:  # no loss depended on this image
        return delta
    moved = threat.project_delta(threat.step(delta, grad, step_size))
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
    bare = _bare(model)
    with optim_wrapper.optim_context(model):
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
