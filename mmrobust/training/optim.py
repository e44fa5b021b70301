"""Optimizer rules: bfloat16, a slower backbone, and schedules that keep it slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mode
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.optim import (
    DefaultOptimWrapperConstructor,
    OneCycleLR,
    OptimWrapper,
    PolyLR,
)
from torch import nn

from ..errors import ConfigError
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, PARAM_SCHEDULERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper with the forward pass under bfloat16 autocast.

    On any device that torch can autocast on, CPUs too, where mmengine's AmpOptimWrapper
    refuses to work. bfloat16 has the range of float32, so there is no loss scaling and
    no update is lost to it. Weights, gradients and optimizer stay in float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """See OptimWrapper."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


class Rates(NamedTuple):
    """The commonest learning rates before any schedule."""

    rest: float
    backbone: float


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLrOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Multiplies the backbone's learning rate after all other rules have been applied.

    An adversarially pre-trained backbone keeps its robustness when it is changed
    slowly; arXiv 2305.17438 multiplies by 0.1. mmengine's own
    ``custom_keys={'backbone': dict(lr_mult=0.1)}`` makes every other rule (bias and
    norm multipliers) be ignored inside the backbone; here they stay in force.

    Args:
        optim_wrapper_cfg: as DefaultOptimWrapperConstructor's.
        paramwise_cfg: as DefaultOptimWrapperConstructor's, plus
            ``backbone_lr_mult`` (0.1) and ``backbone_key`` (``'backbone'``), the
            component of a parameter's name that marks it, wherever it stands.

    Raises:
        ConfigError: if a multiplier is negative, or no trainable parameter matches.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        paramwise = dict(paramwise_cfg or {})
        paramwise.setdefault('backbone_lr_mult', 0.1)
        paramwise.setdefault('backbone_key', 'backbone')
        factor = paramwise['backbone_lr_mult']
        if not isinstance(factor, (int, float)) or not 0 <= factor < float('inf'):
            raise ConfigError(
                f'backbone_lr_mult={factor!r} must be a finite number and not negative.'
            )
        super().__init__(optim_wrapper_cfg, paramwise)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Builds the wrapper, which keeps its rates for a check of the schedule."""
        wrapper = super().__call__(model)
        wrapper.mmrobust_rates = self._rates
        return wrapper

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Adds parameter groups by the normal rules, then slows the backbone down."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix == '':  # the outermost call of a recursion over modules
            self._slow_backbone(params, module)

    def _slow_backbone(self, params: list[dict], module: nn.Module) -> None:
        factor = self.paramwise_cfg['backbone_lr_mult']
        key = self.paramwise_cfg['backbone_key']
        inside = {
            id(parameter)
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if key in name.split('.')
        }
        if not inside:
            top = sorted({name.split('.')[0] for name, _ in module.named_parameters()})
            raise ConfigError(
                f'backbone_lr_mult={factor} matched no parameter, because no name has '
                f'the component {key!r} (top-level modules: {", ".join(top)}): set '
                'paramwise_cfg.backbone_key.'
            )
        matched = 0
        slowed: list[Any] = []
        others: list[Any] = []
        for group in params:
            weights = [p for p in group['params'] if p.requires_grad]
            # Groups hold one parameter each at this point.
            if weights and all(id(p) in inside for p in weights):
                group['lr'] = group.get('lr', self.base_lr) * factor
                matched += sum(p.numel() for p in weights)
                slowed.append(group['lr'])
            elif weights:
                others.append(group.get('lr', self.base_lr))
        self._rates = Rates(mode(others), mode(slowed)) if others and slowed else None
        if matched == 0:
            text = f'All weights of {key!r} are frozen: there is no rate to multiply.'
        else:
            rates = ', '.join(f'{rate:g}' for rate in sorted(set(slowed)))
            text = (
                f'Backbone learning rate x{factor} for {matched:,} parameters '
                f'({key!r}): {rates}, where the base '
                f'rate is {self.base_lr:g}.'
            )
        print_log(text, logger='current')


@PARAM_SCHEDULERS.register_module()
class RelativePolyLR(PolyLR):
    """mmengine's PolyLR that ends at the same share of every parameter's rate.

    PolyLR's ``eta_min`` holds for all parameters, and the backbone's smaller rate would
    rise to it.

    Args:
        *args: as PolyLR's.
        eta_min_ratio: the last rate, relative to each parameter's first one.
        **kwargs: as PolyLR's, without ``eta_min``.
    """

    def __init__(self, *args: Any, eta_min_ratio: float, **kwargs: Any) -> None:
        self.eta_min_ratio = eta_min_ratio
        super().__init__(*args, **kwargs)

    def _get_value(self) -> list[float]:
        groups = self.optimizer.param_groups
        if self.last_step == 0:
            return [group[self.param_name] for group in groups]
        left = (1 - 1 / (self.total_iters - self.last_step + 1)) ** self.power
        lowest = [self.eta_min_ratio * base for base in self.base_values]
        pairs = zip(groups, lowest, strict=True)
        return [(group[self.param_name] - low) * left + low for group, low in pairs]


@PARAM_SCHEDULERS.register_module()
class RelativeOneCycleLR(OneCycleLR):
    """mmengine's OneCycleLR around every parameter's own rate.

    OneCycleLR's ``eta_max`` holds for all parameters, and the backbone's smaller rate
    would rise to it.

    Args:
        optimizer: as OneCycleLR's.
        *args: as OneCycleLR's.
        eta_max_ratio: the highest rate, relative to each parameter's rate.
        **kwargs: as OneCycleLR's, without ``eta_max``.
    """

    def __init__(
        self, optimizer: Any, *args: Any, eta_max_ratio: float, **kwargs: Any
    ) -> None:
        rates = [group['lr'] * eta_max_ratio for group in optimizer.param_groups]
        super().__init__(optimizer, *args, eta_max=rates, **kwargs)
