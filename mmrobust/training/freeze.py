"""A hook for fine-tuning that keeps the backbone exactly as it was initialised."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..errors import ConfigError
from ..registry import HOOKS
from ..utils.models import bare_model, state_digest


@HOOKS.register_module()
class FreezeBackboneHook(Hook):
    """Keeps a part of the model exactly as it was initialised.

    Its weights get no gradient, and it computes in eval mode, also in training: no
    BatchNorm statistic moves, nothing is dropped. Gradients still go through it to its
    input, so adversarial training of what comes after it works. mmdet's
    ``frozen_stages`` and ``norm_eval`` exist for some backbones only, and none freezes
    the normalisation or dropout of all its stages.

    Args:
        module: name of the part.

    Raises:
        ConfigError: before training, if there is no such part, nothing else is left
            to learn, or the part has changed at the end nevertheless.
    """

    # Before hooks that copy the model (EMA) or look at what is trained.
    priority = 'VERY_HIGH'

    def __init__(self, module: str = 'backbone') -> None:
        self.module = module
        self.digest = ''
        self._handle: Any = None

    def before_run(self, runner: Runner) -> None:
        """Freezes, before the weights are initialised or loaded."""
        model, part = self._find(runner)
        part.requires_grad_(False)
        if self._handle is None:
            # At each forward pass, as loops, validation and attacks all set modes.
            self._handle = part.register_forward_pre_hook(_to_eval)
            if is_model_wrapper(runner.model):
                # It has listed the parameters whose gradients it waits for.
                runner.model = runner.wrap_model(
                    runner.cfg.get('model_wrapper_cfg'), model
                )

    def before_train(self, runner: Runner) -> None:
        """Remembers the part; its weights are those to keep by now."""
        model, part = self._find(runner)
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(
                f'nothing is left to learn: the model has no weights besides '
                f'{self.module!r} that are not frozen.'
            )
        self.digest = state_digest(part)
        count = sum(p.numel() for p in part.parameters())
        print_log(f'{self.module} is frozen: {count} parameters.', logger='current')

    def after_train(self, runner: Runner) -> None:
        """Refuses a training in which the part has changed nevertheless."""
        if state_digest(self._find(runner)[1]) != self.digest:
            raise ConfigError(
                f'{self.module!r} was frozen and has changed in training: something '
                'else in the config (a hook, say) writes to its weights.'
            )

    def _find(self, runner: Runner) -> tuple[nn.Module, nn.Module]:
        model = bare_model(runner.model)
        part = dict(model.named_modules()).get(self.module)
        if part is None or not any(True for _ in part.parameters()):
            raise ConfigError(
                f'{type(model).__name__} has no {self.module!r} with weights to freeze.'
            )
        return model, part


def _to_eval(module: nn.Module, args: Any) -> None:
    module.eval()
