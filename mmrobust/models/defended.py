"""Puts a defence in front of a detector, and gives attacks its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..errors import ConfigError
from ..placement import Placement
from ..registry import MODELS
from .defences import RandomResizing

Step = Callable[[Tensor], Tensor]

# What mmdet's forward() calls its arguments.
_ARGUMENTS = ('inputs', 'data_samples', 'mode')


@MODELS.register_module()
def Defended(  # noqa: N802 (a type in configs)
    detector: Any,
    preprocess: Any,
    bpda: Any = None,
    adaptive: bool = True,
    data_preprocessor: Mapping[str, Any] | None = None,
) -> Any:
    """Puts steps in front of a detector, in its losses as in its predictions.

    The detector stays what it is, with the names of its weights: it loads the
    checkpoint of the one without defence. Steps get the pixels (0-255) that the
    pipeline loaded, before the data preprocessor's normalisation, image by image and
    without the padding of a batch.

    >>> import mmrobust
    >>> from mmdet.apis import init_detector
    >>> model = init_detector(config, checkpoint, device='cpu')
    >>> model = mmrobust.Defended(model, dict(type='mmrobust.JPEG', quality=75))

    Args:
        detector: a detector or its config.
        preprocess: a step or several, in their order: configs of JPEG, MedianFilter,
            BitDepth, RandomResizing or other registered modules, or callables from an
            image (C, H, W) to one of its shape.
        bpda: the gradient of steps (BPDA, Athalye et al., arXiv 1802.00420): None for
            their own, or the identity's of those that are known to have none (JPEG,
            MedianFilter, BitDepth); ``'identity'`` for the identity's of every step;
            or a differentiable stand-in for every step, a callable or config.
            RandomResizing always has its own.
        adaptive: False lets no gradient through steps other than RandomResizing, as if
            the attack did not know better.
        data_preprocessor: of the detector's config, if it has none.

    Returns:
        The detector.

    Raises:
        ConfigError: for a step or a ``bpda`` that is none.
    """
    if isinstance(detector, Mapping):
        config = dict(detector)
        if data_preprocessor is not None:
            config.setdefault('data_preprocessor', data_preprocessor)
        detector = MODELS.build(config)
    defence = Defence(preprocess, bpda, adaptive)
    detector.add_module('defence', defence)
    detector.register_forward_pre_hook(defence.before, with_kwargs=True)
    detector.register_forward_hook(defence.after)
    return detector


class Defence(nn.Module):
    """The steps, as hooks of a detector's ``forward``; arguments of Defended."""

    def __init__(self, preprocess: Any, bpda: Any, adaptive: bool) -> None:
        super().__init__()
        several = isinstance(preprocess, Sequence)
        self.steps = [_built(s) for s in (preprocess if several else [preprocess])]
        self.stand_in = bpda if bpda in (None, 'identity') else _built(bpda)
        self.adaptive = adaptive
        known = [*self.steps, self.stand_in]
        # What they have of weights and buffers goes where the detector goes.
        self.parts = nn.ModuleList(s for s in known if isinstance(s, nn.Module))
        self._places: list[list[Placement]] = []

    def before(self, model: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Changes what the detector gets: pixels, and ground truth for its losses."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        samples: Any = given.get('data_samples')
        inputs = given['inputs']
        self._places, changed = [], []
        for place, image in enumerate(inputs):
            shape = image.shape[1:]
            if samples is not None:
                shape = samples[place].get('img_shape', shape)
            changed.append(self._changed(model.data_preprocessor, image, shape))
        given['inputs'] = torch.stack(changed)
        if given.get('mode') == 'loss' and any(self._places):
            given['data_samples'] = [
                _moved(sample, own)
                for sample, own in zip(samples, self._places, strict=True)
            ]
        return (), given

    def after(self, model: Any, args: tuple, output: Any) -> None:
        """Moves predictions to where the objects are in the image."""
        if not isinstance(output, list):
            return
        for sample, places in zip(output, self._places, strict=True):
            if places and isinstance(sample, BaseDataElement):
                _move_back(sample, places)

    def _changed(self, preprocessor: Any, image: Tensor, shape: Any) -> Tensor:
        height, width = shape[:2]
        own = image[:, :height, :width]
        normalised = getattr(preprocessor, '_enable_normalize', False)
        flipped = getattr(preprocessor, '_channel_conversion', False)
        pixels = own * preprocessor.std + preprocessor.mean if normalised else own
        pixels = pixels.flip(0) if flipped else pixels
        self._places.append([])
        for step in self.steps:
            if isinstance(step, RandomResizing):
                self._places[-1].append(step.draw(pixels))
                pixels = self._places[-1][-1].place(pixels)
            else:
                pixels = self._applied(step, pixels)
        pixels = pixels.flip(0) if flipped else pixels
        if normalised:
            pixels = (pixels - preprocessor.mean) / preprocessor.std
        if own.shape == image.shape:
            return pixels
        changed = image.clone()
        changed[:, :height, :width] = pixels
        return changed

    def _applied(self, step: Step, pixels: Tensor) -> Tensor:
        straight = self.stand_in or getattr(step, 'straight_through', False)
        if self.adaptive and not straight:
            return step(pixels)
        with torch.no_grad():
            value = step(pixels)
        if not self.adaptive:
            return value
        source = self.stand_in(pixels) if callable(self.stand_in) else pixels
        result: Tensor = _GradientOf.apply(source, value)
        return result


class _GradientOf(torch.autograd.Function):
    """A value with the gradient of another one."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _built(step: Any) -> Any:
    built = MODELS.build(dict(step)) if isinstance(step, Mapping) else step
    if not callable(built):
        raise ConfigError(
            f'{step!r} is no step in front of a detector: give a config like '
            "dict(type='mmrobust.JPEG', quality=75), or a callable; bpda also takes "
            "'identity'."
        )
    return built


def _moved(sample: Any, places: Sequence[Placement]) -> Any:
    for place in places:
        sample = place.move(sample)
    return sample


def _move_back(sample: BaseDataElement, places: Sequence[Placement]) -> None:
    found = sample.get('pred_instances', None)
    known = found is not None and 'bboxes' in found and found.bboxes.shape[-1] == 4
    if not known or 'masks' in found or 'pred_sem_seg' in sample:
        raise ConfigError(
            'RandomResizing moves upright boxes back to the image and nothing else, '
            'and this model predicts more or other things.'
        )
    scale = found.bboxes.new_tensor([*sample.get('scale_factor', (1, 1))] * 2)
    boxes = found.bboxes * scale
    for place in reversed(places):
        boxes = place.moved_back(boxes)
    found.bboxes = boxes / scale
