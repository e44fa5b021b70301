"""Skipping updates with a loss or a gradient that is not finite, all ranks alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ..distributed import is_sharded
from ..errors import ConfigError
from ..objective import LossState
from ..utils.models import replaced


class FiniteUpdates:
    """Skips updates with a loss or a gradient that is not finite.

    A single such update would make every weight NaN. A skipped one leaves weights,
    optimizer and buffers (BatchNorm statistics, and what losses remember, which the
    forward pass has changed already) as the last update left them, so that the
    checkpoint of any moment is good.

    Processes decide alike without talking to each other: a loss that is not finite
    makes the process's gradients NaN, and averaging hands them to all. Where each
    process has a part of the gradients alone (FSDP), they tell each other.

    Costs per update one pass over the gradients and a copy of the buffers. The host
    waits for the gradients, as it does in mmengine's gradient clipping and loss
    scaling, and as reading the losses for the log does after every update.

    Args:
        model: the model or its distributed wrapper.
        optim_wrapper: its updates are guarded inside :meth:`active`. A loss scaler
            goes on shrinking its scale; its skipped updates count.
        max_skipped: training stops at so many skipped updates in a row, with a
            ConfigError that has advice.
    """

    def __init__(
        self, model: nn.Module, optim_wrapper: OptimWrapper, max_skipped: int
    ) -> None:
        self.wrapper = optim_wrapper
        self.max_skipped = max_skipped
        self.skipped = 0
        self._step, self._update = optim_wrapper.step, optim_wrapper.update_params
        self._scales = hasattr(optim_wrapper, 'loss_scaler')
        self._sharded = is_sharded(model)
        self._memory = LossState(model, normalisations=True)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Stands in place of the wrapper's ``step`` and ``update_params``, inside."""
        with (
            replaced(self.wrapper, 'step', self.step),
            replaced(self.wrapper, 'update_params', self.update_params),
        ):
            yield

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As OptimWrapper's; a loss that is not finite has gradients that are not."""
        factor = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self._update(loss * factor.to(loss), *args, **kwargs)
        # The update may come later, and a checkpoint before it.
        if self.wrapper._accumulative_counts > 1 and not loss.isfinite():
            self._restore()

    def step(self, **kwargs: Any) -> None:
        """As OptimWrapper's, but for gradients that are not finite."""
        finite = self._finite()
        if finite or self._scales:
            self._step(**kwargs)  # a loss scaler skips by itself
        if not finite:
            self._restore()
            self._count()
            return
        self.remember()
        if self.skipped:
            _warn(
                'Losses and gradients are finite again; updates skipped: '
                f'{self.skipped}.'
            )
        self.skipped = 0

    def remember(self) -> None:
        """Takes the buffers as they are now for those that a skip restores.

        To be called when something other than an update (a validation, say) has
        changed buffers.
        """
        self._memory.refresh()

    def _restore(self) -> None:
        self._memory.restore(thorough=True)

    def _finite(self) -> bool:
        groups = self.wrapper.optimizer.param_groups
        weights = [weight for group in groups for weight in group['params']]
        grads = [weight.grad for weight in weights if weight.grad is not None]
        grads = [grad for grad in grads if grad.numel()]  # FSDP: of other processes
        # One number per weight, so that the host asks once. The largest size, as a sum
        # of squares can overflow where a loss is scaled.
        norms = torch._foreach_norm(grads, float('inf')) if grads else []
        finite = not norms or bool(torch.stack(list(norms)).isfinite().all())
        if self._sharded:
            broken = torch.tensor(float(not finite), device=weights[0].device)
            all_reduce(broken)
            finite = not broken
        return finite

    def _count(self) -> None:
        self.skipped += 1
        if self.skipped == self.max_skipped:
            raise ConfigError(
                f'the loss or its gradients were not finite in {self.skipped} updates '
                'in a row, which were skipped: go on from a checkpoint with a lower '
                'learning rate, optim_wrapper.clip_grad, a smaller eps or a longer '
                'warmup_iters, or bfloat16 in place of float16.'
            )
        if self.skipped == 1:
            _warn(
                'The loss or its gradients are not finite: the weights stay as they '
                f'are; training stops after {self.max_skipped} such updates in a row.'
            )


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
