"""FSDP: training of models whose weights and optimizer the processes share out.

mmengine's strategy for it clips each process's gradients by the norm of its own part,
cannot resume with torch 2.1 and later, and takes neither CPUs nor weights that are
single numbers. Checkpoints of the one here are those of any other training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy as StockStrategy
from mmengine.device import get_device
from mmengine.dist import all_gather_object, all_reduce, get_rank, is_main_process
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ..errors import ConfigError
from ..registry import STRATEGIES
from ..utils.acceleration import Acceleration
from .adversary import Adversary
from .free import FreeAdversary
from .freeze import FreezeBackboneHook
from .resume import checkpoint_file

# What optimizers call the number of their updates.
_STEPS = 'step'
# Settings of FSDP with which this has been tried, or that change no number.
_OF_FSDP = ('sharding_strategy', 'backward_prefetch', 'forward_prefetch')
_SHARED = (None, 'FULL_SHARD', 'SHARD_GRAD_OP')


@STRATEGIES.register_module()
class FSDPStrategy(StockStrategy):
    """mmengine's FSDPStrategy that trains as DDP does, and leaves the same checkpoints.

    Each process keeps a part of the weights, of their gradients and of the optimizer's
    states. An update gathers the weights of one block after the other; attacks that
    come before it (PGD-AT) and attacks in a validation gather all of them once, see
    :func:`mmrobust.distributed.whole`. The norm that gradients are clipped by is that
    of the whole gradient. Rules for parameters (a slower backbone, no decay) see the
    model's own names. Checkpoints are one file, with which a training under DDP goes
    on, and the other way round.

    Args:
        blocks: names of the classes of modules that are gathered one by one, such as
            ``['TransformerEncoderLayer']``; without any, all weights are gathered
            in each pass, and only the optimizer's states and gradients are saved.
            Only modules that are called, not those whose methods are (heads).
        recompute: keep the input of each block alone and compute what is inside again
            in the backward pass, for backbones that have no ``with_cp``.
        model_wrapper: other settings of ``MMFullyShardedDataParallel``.
        **stock: see mmengine's.

    Raises:
        ConfigError: if the model has no such blocks, or for ``state_dict_cfg``.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[str] = (),
        recompute: bool = False,
        model_wrapper: dict | None = None,
        **stock: Any,
    ) -> None:
        if stock.setdefault('state_dict_cfg', 'full') != 'full':
            raise ConfigError(
                'state_dict_cfg of mmrobust.FSDPStrategy is always full, one file for '
                'all processes: leave it out.'
            )
        if isinstance(blocks, str) or (recompute and not blocks):
            raise ConfigError(
                f'blocks={blocks!r} has to list names of classes, like '
                "['TransformerEncoderLayer'], and recompute needs some."
            )
        given = dict(model_wrapper or {})
        odd = given.keys() - {'type', *_OF_FSDP}
        if odd or given.get('sharding_strategy') not in _SHARED:
            raise ConfigError(
                f'strategy.model_wrapper={given} of mmrobust.FSDPStrategy may have '
                f'{", ".join(_OF_FSDP)} alone, and share out among all processes: name '
                'the parts that are gathered one by one in strategy.blocks.'
            )
        self.blocks, self.recompute = list(blocks), recompute
        self._resuming = False
        super().__init__(model_wrapper=given, **stock)

    def prepare(self, model: Any, *, optim_wrapper: Any = None, **other: Any) -> Any:
        """See mmengine's; the optimizer is built before the weights are shared out."""
        if not self._prepared and optim_wrapper is not None:
            model = self.build_model(model)
            if optim_wrapper.get('type') == 'AmpOptimWrapper':
                optim_wrapper.setdefault('use_fsdp', True)
            optim_wrapper = build_optim_wrapper(model, optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **other)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """See mmengine's."""
        built: nn.Module = super().build_model(model)
        kinds = {type(module).__name__ for module in built.modules()}
        if missing := set(self.blocks) - kinds:
            raise ConfigError(
                f'{type(built).__name__} has no module of the class '
                f'{", ".join(sorted(missing))}, which strategy.blocks names.'
            )
        return built

    def _is_block(self, module: nn.Module) -> bool:
        return type(module).__name__ in self.blocks

    def _wrap_model(self, model: nn.Module) -> Any:
        # FSDP refuses single numbers, such as the scales of FCOS. One in a row
        # multiplies as one alone.
        self._numbers = {n for n, p in model.named_parameters() if not p.ndim}
        for name in self._numbers:
            weight = model.get_parameter(name)
            weight.data = weight.data.reshape(1)
        self._shapes = {name: each.shape for name, each in model.state_dict().items()}
        settings = self.model_wrapper
        settings.setdefault('type', 'MMFullyShardedDataParallel')
        if get_device() == 'cpu':
            settings.setdefault('device_id', get_device())
        if self.blocks:
            policy = partial(lambda_auto_wrap_policy, lambda_fn=self._is_block)
            settings.setdefault('auto_wrap_policy', policy)
        wrapped = super()._wrap_model(model)
        if self.recompute:
            self._check_norms(wrapped.train())
            apply_activation_checkpointing(wrapped, check_fn=self._is_block)
        return wrapped

    def _check_norms(self, model: nn.Module) -> None:
        for block in filter(self._is_block, model.modules()):
            kind = nn.modules.batchnorm._BatchNorm
            if any(isinstance(m, kind) and m.training for m in block.modules()):
                raise ConfigError(
                    f'recompute would show each batch twice to the BatchNorm of '
                    f'{type(block).__name__}: set norm_eval=True, or leave it out.'
                )

    def build_optim_wrapper(self, optim_wrapper: Any, model: Any = None) -> Any:
        """Takes the optimizer of the model as it was before it was shared out."""
        assert model is not None
        weights = {id(weight) for weight in model.parameters()}
        # FSDP keeps them and changes what is in them.
        assert weights >= {id(weight) for weight in _in_order(optim_wrapper)}
        clip = optim_wrapper.clip_grad_kwargs
        if clip and optim_wrapper.clip_func is nn.utils.clip_grad_norm_:
            optim_wrapper._clip_grad = partial(_clip_norm, model, optim_wrapper)
        return optim_wrapper

    # -------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str, **given: Any) -> None:
        """See mmengine's; all processes gather, the first one writes, in one piece."""
        local = is_main_process() and '://' not in filename
        with checkpoint_file(filename) if local else nullcontext(filename) as path:
            super().save_checkpoint(str(path), **given)

    def model_state_dict(self) -> dict:
        """See mmengine's."""
        found = super().model_state_dict()
        return {
            name: value.reshape(()) if name in self._numbers else value
            for name, value in found.items()
        }

    def load_model_state_dict(self, state_dict: dict, **given: Any) -> None:
        """Loads what fits by name and shape, and warns of what does not."""
        state_dict = {
            name: value.reshape(1) if name in self._numbers else value
            for name, value in (
                (key.removeprefix('module.'), value)
                for key, value in state_dict.items()
            )
        }
        fitting = {
            name: value
            for name, value in state_dict.items()
            if getattr(value, 'shape', None) == self._shapes.get(name, ())
        }
        missing = sorted(self._shapes.keys() - fitting)
        if missing and self._resuming:
            raise ConfigError(
                f'the checkpoint to resume from lacks {len(missing)} of '
                f'{len(self._shapes)} weights, or has them in another shape '
                f'({", ".join(missing[:3])}): is it the checkpoint of this config?'
            )
        if missing or len(state_dict) > len(fitting):
            others = sorted(state_dict.keys() - fitting)
            print_log(
                f'Weights that the checkpoint does not have: {missing}; that it has '
                f'in vain: {others}.',
                logger='current',
                level=logging.WARNING,
            )
        self.model.load_state_dict(fitting, strict=False)

    def resume(self, filename: str, **given: Any) -> dict:
        """See mmengine's; the whole state is read to the CPU."""
        self._resuming = True
        found: dict = super().resume(filename, **{**given, 'map_location': 'cpu'})
        return found

    def optim_state_dict(self) -> dict:
        """Returns the whole optimizer's state as torch saves one.

        All processes have to ask; the first one gets the states of weights.
        """
        wrapper = self.optim_wrapper
        states, parts = wrapper.optimizer.state, self._parts()
        held = [
            {name: value for name, value in states[part.weight].items() if _is(value)}
            if part.weight in states
            else {}
            for part in parts
        ]
        names = all_gather_object([list(state) for state in held])
        found = {
            number: {
                name: part.gathered(name, own.get(name))
                for name in sorted({n for process in names for n in process[number]})
            }
            for number, (part, own) in enumerate(zip(parts, held, strict=True))
        }
        found = {number: state for number, state in found.items() if state}
        return {**wrapper.state_dict(), 'state': found if is_main_process() else {}}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Takes this process's part of the states of a whole optimizer."""
        parts = self._parts()
        states = {
            number: {n: parts[number].of(n, value) for n, value in state.items()}
            for number, state in state_dict['state'].items()
        }
        self.optim_wrapper.load_state_dict({**state_dict, 'state': states})

    def _parts(self) -> list[_Part]:
        """Finds out which part of each weight this process has."""
        weights = _in_order(self.optim_wrapper)
        counts = all_gather_object([weight.numel() for weight in weights])
        parts = []
        for number, weight in enumerate(weights):
            name = self.id_to_name[id(weight)]
            shape = torch.Size() if name in self._numbers else self._shapes[name]
            start = sum(process[number] for process in counts[: get_rank()])
            parts.append(_Part(weight, shape, start))
        return parts


class _Part:
    """The part of a weight that this process has, and of what is kept beside it.

    torch's own way to gather an optimizer's states gives each of a weight's states the
    values of the last one, where weights are on a CPU (2.15).

    Args:
        weight: the part.
        shape: of the whole weight.
        start: how many of its numbers other processes have in front of the part.
    """

    def __init__(self, weight: Tensor, shape: torch.Size, start: int) -> None:
        self.weight, self.shape = weight, shape
        self._inside = slice(start, start + weight.numel())

    def gathered(self, name: str, value: Tensor | None) -> Tensor:
        """Returns the whole of a state, which is right in the first process alone.

        Args:
            name: of the state.
            value: of this process; None if it has nothing of the weight.
        """
        device = self.weight.device
        if name == _STEPS:  # one number, and the same wherever there is one
            steps = torch.zeros(1, device=device)
            steps += 0 if value is None else value.to(steps)
            all_reduce(steps, 'max')
            return steps[0].cpu()
        if value is not None and value.shape != self.weight.shape:
            raise ConfigError(
                'FSDP shares out the states of optimizers that keep a number for each '
                'weight, as those of SGD and AdamW do: take one of them.'
            )
        dtype = self.weight.dtype if value is None else value.dtype
        whole = torch.zeros(self.shape.numel(), dtype=dtype, device=device)
        if value is not None:
            whole[self._inside] = value.flatten()
        all_reduce(whole)  # of zeros and a single number each
        return whole.reshape(self.shape).cpu()

    def of(self, name: str, value: Tensor) -> Tensor:
        """Returns this process's part of a whole state."""
        if name == _STEPS:
            return value
        return value.flatten()[self._inside].reshape(self.weight.shape)


def _is(value: Any) -> bool:
    return value is not None


def _in_order(wrapper: Any) -> list[Tensor]:
    """Returns the weights of an optimizer as torch numbers them in its state."""
    groups = wrapper.optimizer.param_groups
    return [weight for group in groups for weight in group['params']]


def _clip_norm(model: Any, wrapper: Any) -> None:
    """Clips by the norm of the whole gradient, and logs it, as OptimWrapper does."""
    norm = model.clip_grad_norm_(**wrapper.clip_grad_kwargs)
    wrapper.message_hub.update_scalar(f'train/{wrapper.grad_name}', float(norm))


def check_strategy(runner: Any, adversary: Adversary, speed: Acceleration) -> None:
    """Refuses strategies that train otherwise, and what needs whole weights.

    Args:
        runner: a runner whose hooks are known; those without a strategy pass.
        adversary: of the training.
        speed: of the training.

    Raises:
        ConfigError: with what to do about it.
    """
    strategy = getattr(runner, 'strategy', None)
    if strategy is None:
        return
    if not isinstance(strategy, FSDPStrategy):
        raise ConfigError(
            f'strategy {type(strategy).__name__} is not supported in adversarial '
            "training: set strategy.type='mmrobust.FSDPStrategy', or leave strategy "
            'and runner_type out, which is DDP on several processes.'
        )
    if runner.strategy.launcher == 'none':
        raise ConfigError(
            'strategy mmrobust.FSDPStrategy shares a model among processes: start '
            'them with --launcher, or leave strategy and runner_type out.'
        )
    own = isinstance(adversary, FreeAdversary) and adversary.objective.terms is not None
    accumulated = (runner.optim_wrapper or {}).get('accumulative_counts', 1) > 1
    kinds = (EMAHook, FreezeBackboneHook)
    hooks = [type(hook).__name__ for hook in runner.hooks if isinstance(hook, kinds)]
    refused = {
        'a second backward pass of FreeAT for its objective': (
            own,
            "take objective='total', or PGDAdversary",
        ),
        'awp_gamma': (adversary.awp_gamma, 'leave it out'),
        'accumulative_counts': (accumulated, 'take more processes in place of it'),
        ' and '.join(hooks): (hooks, 'leave it out (frozen_stages freezes stages)'),
        'speed.channels_last': (speed.channels_last, 'leave it out'),
        'speed.compile': (speed.compile is not None, 'leave it out'),
        'compile': (runner.cfg.get('compile'), 'leave it out'),
    }
    for what, (found, remedy) in refused.items():
        if found:
            raise ConfigError(
                f'{what} does not work under mmrobust.FSDPStrategy, where each process '
                f'has a part of the weights: {remedy}.'
            )
