"""Puts a stack of images through the parts of a detector that keep them apart.

The loss of a detector is normalised over its batch, so images cannot simply share a
call. Backbone, neck and the convolutions of a dense head can: :class:`Seams` computes
them for a stack of images and hands every image its slice for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from ..utils.models import replaced

# Of an image's place, its input (1, C, H, W) and sample, and the model's loss function.
Each = Callable[[int, Tensor, Any, Callable[..., Any]], None]


class NotStackedError(Exception):
    """The model does not keep the images of a stack apart; the message says why."""


class Seams:
    """The parts of a detector that take a stack as they take its images alone.

    Backbone and neck, and a dense head that takes what the neck gives and nothing else.
    What comes after them, and all losses, which are normalised over a batch, is
    computed image by image on slices.

    Args:
        model: the bare detector.
        heads: names of such heads among the model's children.
    """

    def __init__(self, model: Any, heads: Sequence[str] = ()) -> None:
        self.model = model
        self.heads = list(heads)

    def run(self, inputs: Tensor, samples: Sequence[Any], each: Each) -> None:
        """Puts a stack through the parts, then calls ``each`` image by image.

        All of it happens inside the model's ``forward``, as it does with an image
        alone, so that whatever is wrapped around that applies.

        Args:
            inputs: preprocessed images (N, C, H, W).
            samples: one of each image; ``each`` gets what ``forward`` hands on of it.
            each: called while the parts answer with the image's slice.

        Raises:
            NotStackedError: if what a part gives cannot be told apart by image.
        """
        model, own_loss = self.model, self.model.loss
        parts = [getattr(model, name) for name in self.heads]

        def loss(inputs: Tensor, samples: Any, *args: Any) -> dict[str, Any]:
            features = model.extract_feat(inputs)
            outputs = [part.forward(features) for part in parts]
            stacks = [inputs, features, *outputs]
            slices = zip(
                *(_slices(stack, len(inputs)) for stack in stacks), strict=True
            )
            for place, (image, feature, *found) in enumerate(slices):
                with ExitStack() as shown:
                    known = _known(model.extract_feat, image, feature)
                    shown.enter_context(replaced(model, 'extract_feat', known))
                    for part, output in zip(parts, found, strict=True):
                        known = _known(part.forward, feature, output)
                        shown.enter_context(replaced(part, 'forward', known))
                    each(place, image, samples[place], own_loss)
            return {}

        with replaced(model, 'loss', loss):
            model(inputs, list(samples), mode='loss')


def _slices(value: Any, count: int) -> list[Any]:
    """Returns what belongs to each image of a stack's output."""
    if value is None:
        return [None] * count
    if isinstance(value, Tensor):
        if value.dim() == 0 or len(value) != count:
            raise NotStackedError('an output has no place for every image')
        # One node of the graph, unlike as many slices.
        return list(value.split(1))
    if type(value) not in (list, tuple):
        raise NotStackedError(f'an output is a {type(value).__name__}')
    parts = [_slices(each, count) for each in value]
    return [type(value)(part[i] for part in parts) for i in range(count)]


def _known(function: Callable[..., Any], argument: Any, result: Any) -> Any:
    """The function with a result that is known already for one argument."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and args[0] is argument:
            return result
        return function(*args, **kwargs)

    return answer
