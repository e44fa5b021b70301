"""A loss whose largest elements are bounded, around any of mmdet's losses."""

from __future__ import annotations

from typing import Any

from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import MODELS


@MODELS.register_module()
class BoundedLoss(nn.Module):
    """Scales every element of a loss above ``bound`` down to it, while training.

    Source: ``clip = 6`` in the code of arXiv 2305.17438. The value of such an element
    becomes the bound and its gradient is scaled by ``bound / element``, not zeroed.

    In eval mode, and so in every attack, the loss is the bare one: bounded, it would
    spare just the elements that an attack is after. (The published evaluation attacks
    the bounded loss.)

    In a config, only two keys are put before those of the loss itself::

        loss_cls=dict(type='mmrobust.BoundedLoss', loss='FocalLoss', bound=6)

    Args:
        loss: type of the loss.
        bound: largest value of an element, above 0.
        per: ``'element'``, or ``'row'`` for the sum over the last dimension, as the
            four coordinates of a box.
        **kwargs: settings of the loss. Heads read some of them, like ``use_sigmoid``,
            from here.

    Raises:
        ConfigError: for an impossible bound or an unknown ``per``.
    """

    attacked_in_eval = True

    def __init__(
        self, loss: str, bound: float = 6.0, per: str = 'element', **kwargs: Any
    ) -> None:
        super().__init__()
        if not isinstance(bound, (int, float)) or not 0 < bound < float('inf'):
            raise ConfigError(f'bound={bound!r} must be a finite number above 0.')
        if per not in ('element', 'row'):
            raise ConfigError(f"per={per!r} is unknown: choose 'element' or 'row'.")
        self.loss = MODELS.build({'type': loss, **kwargs})
        self.bound = bound
        self.per = per

    def __getattr__(self, name: str) -> Any:
        # Heads ask their loss for more than its value (class_weight, get_activation).
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('loss'), name)

    def forward(
        self,
        *args: Any,
        avg_factor: Any = None,
        reduction_override: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of mmdet's signature (pred, target, weight, avg_factor, ...)."""
        if len(args) > 3:
            args, avg_factor = args[:3], args[3]
        if not self.training:
            return self.loss(
                *args,
                avg_factor=avg_factor,
                reduction_override=reduction_override,
                **kwargs,
            )
        elements = self.loss(*args, reduction_override='none', **kwargs)
        size = elements.detach()
        if self.per == 'row':
            size = size.sum(-1, keepdim=True)
        # The clamp keeps small elements at a factor of exactly 1.
        elements = elements * (self.bound / size.clamp_min(self.bound))
        reduction = reduction_override or self.loss.reduction
        return weight_reduce_loss(elements, None, reduction, avg_factor)
