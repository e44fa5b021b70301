"""Options that make losses and gradients faster: bfloat16, memory layout, compiling.

Attacks and updates are accelerated, and only while they compute; what is scored is the
model's stock prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, doing
from .models import device_of, replaced

OPTIONS = ('autocast', 'channels_last', 'compile')

# What is compiled: the losses of heads branch on what they find in an image.
_PARTS = ('backbone', 'neck')


class Acceleration:
    """Options that make a model's losses and their gradients faster.

    Between :meth:`prepared` and its end they apply to what the model computes inside
    :meth:`on`, except predictions (``mode='predict'``). Names and values of the weights
    stay as they are, and so does what a checkpoint holds.

    Args:
        autocast: ``'bfloat16'`` computes convolutions and matrix products in this
            format, forwards and backwards; None leaves the precision as it is. The
            format has float32's range, so that no loss needs to be scaled, and 8 bits
            of precision, so that an attack may be weaker.
        channels_last: images and the weights of convolutions lie in memory pixel by
            pixel and not channel by channel, as a GPU's matrix units want them.
        compile: compile backbone and neck, each by itself, with ``torch.compile``;
            True, or a dict of its arguments, like ``dict(mode='max-autotune')``.
            Unless that says something about ``dynamic``, the height and width of
            images are dynamic: convolutional parts are compiled once for every way
            they are used (update, gradient of an attack, value of an attack) and every
            number of images in a batch, and not for every size.

    Raises:
        ConfigError: for a value that an option cannot have.
    """

    def __init__(
        self,
        autocast: str | None = None,
        channels_last: bool = False,
        compile: bool | Mapping[str, Any] = False,
    ) -> None:
        if autocast not in (None, 'bfloat16'):
            raise ConfigError(
                f"speed.autocast={autocast!r} is unknown: choose 'bfloat16' or None "
                "(in 'float16' gradients of images become 0)."
            )
        self.autocast = autocast
        self.channels_last = channels_last
        self.compile = (
            None if compile is False else dict({} if compile is True else compile)
        )
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] = []

    @classmethod
    def read(cls, settings: Mapping[str, Any] | None) -> Acceleration:
        """Reads a config's ``speed``; None stands for no option.

        Raises:
            ConfigError: for an unknown option.
        """
        settings = {} if settings is None else settings
        if not isinstance(settings, Mapping) or not set(settings) <= set(OPTIONS):
            raise ConfigError(
                f'speed={settings!r} must be a dict of the options '
                f'{", ".join(OPTIONS)} and no others.'
            )
        return cls(**settings)

    def describe(self) -> dict[str, Any]:
        """Returns the options that are on."""
        found = {
            'autocast': self.autocast,
            'channels_last': self.channels_last,
            'compile': self.compile == {} or self.compile,
        }
        return {key: value for key, value in found.items() if value}

    def notes(self) -> list[str]:
        """Returns sentences that a reader of attacked figures has to know."""
        if not self.autocast:
            return []
        return [
            'losses and gradients of the attacks are in bfloat16 (speed.autocast), '
            'which can weaken them: on two small FCOS it left up to 0.002 more AP; on '
            'DETRs, whose losses have 8 bits, it may be more; publish figures of full '
            'precision, or compare on some images.'
        ]

    @contextmanager
    def prepared(self, model: nn.Module, keeps_graph: bool = False) -> Iterator[None]:
        """Lays out the weights and makes the compiled parts.

        Args:
            model: the bare model, on its device.
            keeps_graph: whether two backward passes go through one forward pass.

        Raises:
            ConfigError: if device, model or torch cannot do what was asked for.
        """
        device = device_of(model)
        on_gpu = device.type == 'cuda'
        if self.autocast and on_gpu and not torch.cuda.is_bf16_supported():
            raise ConfigError(
                f'{torch.cuda.get_device_name(device)} does not compute in bfloat16: '
                'leave speed.autocast out.'
            )
        if self.compile is not None:
            parts = [(name, getattr(model, name, None)) for name in _PARTS]
            self._compiled = [
                (part, _compile(name, part, self.compile))
                for name, part in parts
                if isinstance(part, nn.Module)
            ]
            if not self._compiled:
                raise ConfigError(
                    f'{type(model).__name__} has no {" or ".join(_PARTS)} to compile: '
                    'leave speed.compile out.'
                )
        with ExitStack() as stack:
            if self.channels_last:
                stack.enter_context(_channels_last(model))
            if self.compile is not None and keeps_graph:
                stack.enter_context(_buffers_kept())
            yield

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Accelerates forward passes, and the backward passes that belong to them.

        Args:
            model: the bare model that is :meth:`prepared`; it may be called through
                its distributed wrapper.
        """
        if not self.describe():
            yield
            return
        plain = model.forward
        device = device_of(model).type
        dtype = torch.bfloat16 if self.autocast else None

        def forward(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get('mode') == 'predict':
                return plain(inputs, *args, **kwargs)
            if self.channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with ExitStack() as stack:
                if dtype is not None:
                    stack.enter_context(torch.autocast(device, dtype))
                for part, compiled in self._compiled:
                    stack.enter_context(replaced(part, 'forward', compiled))
                return plain(inputs, *args, **kwargs)

        with replaced(model, 'forward', forward):
            yield


def _compile(
    name: str, part: nn.Module, settings: dict[str, Any]
) -> Callable[..., Any]:
    """Returns the part's forward pass, which is compiled when it is first called."""
    with doing(f'compiling the {name} (speed.compile)'):
        compiled = torch.compile(part.forward, **settings)
    from torch._dynamo import maybe_mark_dynamic

    def forward(*args: Any, **kwargs: Any) -> Any:
        if 'dynamic' not in settings:
            for each in args:
                for maps in each if isinstance(each, (list, tuple)) else [each]:
                    if isinstance(maps, Tensor) and maps.dim() == 4:
                        maybe_mark_dynamic(maps, [2, 3])
        with doing(f'running the compiled {name} (speed.compile)'):
            return compiled(*args, **kwargs)

    return forward


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Lays out weights pixel by pixel, and as before at the end."""
    changed = [
        tensor
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.dim() == 4 and tensor.is_contiguous()
    ]
    for tensor in changed:
        tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for tensor in changed:
            tensor.data = tensor.data.contiguous()


@contextmanager
def _buffers_kept() -> Iterator[None]:
    """Lets a compiled backward pass leave the saved tensors to a second one."""
    from torch._functorch import config

    if not hasattr(config, 'donated_buffer'):  # an older torch does so anyway
        yield
        return
    with config.patch(donated_buffer=False):
        yield
