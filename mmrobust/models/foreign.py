"""Puts a detector of another library, or a black box, behind mmdet's interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.structures import InstanceData
from torch import Tensor

from ..errors import ConfigError
from ..registry import MODELS

_FIELDS = ('boxes', 'labels', 'scores')


@MODELS.register_module()
class ForeignDetector(BaseDetector):
    """Any detector, or any function that detects, attacked and scored like mmdet's.

    What is wrapped has up to two methods, torchvision's conventions:

    - ``predict(images)`` gives a dict for each image: ``boxes`` (n, 4) as
      (x1, y1, x2, y2) in pixels of the image, ``labels`` (n,) from 0, and ``scores``
      (n,). A callable without methods is taken for this one.
    - ``loss(images, targets)``, which a black box has not, gives a dict of losses with
      a gradient; a target is a dict of ``boxes`` and ``labels``.

    ``images`` is a list of tensors (3, H, W), RGB, in 0-255. Without ``loss`` there are
    the attacks that ask for no gradient (``square``, ``noise``), and corruptions.

    >>> import mmrobust, torch
    >>> def black_box(images):  # it sees the same object everywhere
    ...     box = torch.tensor([[2.0, 3, 20, 30]])
    ...     one = dict(boxes=box, labels=torch.tensor([0]), scores=torch.tensor([0.9]))
    ...     return [one for _ in images]
    >>> detector = mmrobust.ForeignDetector(black_box)

    Args:
        detector: what is wrapped, or its config for the ``MODELS`` registry.
        data_preprocessor: of the images; by default they are turned from mmdet's BGR
            to RGB and nothing else.

    Raises:
        ConfigError: for a detector that cannot predict, and for predictions of another
            form.
    """

    def __init__(
        self, detector: Any, data_preprocessor: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(
            data_preprocessor=dict(
                data_preprocessor or {'type': 'DetDataPreprocessor', 'bgr_to_rgb': True}
            )
        )
        if isinstance(detector, Mapping):
            detector = MODELS.build(detector)
        if not callable(getattr(detector, 'predict', detector)):
            raise ConfigError(
                f'a {type(detector).__name__} cannot predict: give an object with '
                'predict(images), or a callable.'
            )
        self.detector = detector

    def loss(self, batch_inputs: Tensor, batch_data_samples: Any) -> dict[str, Tensor]:
        """Returns the losses, as an attack or a training asks for them."""
        own = getattr(self.detector, 'loss', None)
        if own is None:
            raise ConfigError(
                f'{type(self.detector).__name__} is a black box, without losses to '
                "follow: use attacks that need no gradient, 'square' and 'noise'."
            )
        targets = [
            {
                'boxes': _boxes(sample.gt_instances.bboxes),
                'labels': sample.gt_instances.labels,
            }
            for sample in batch_data_samples
        ]
        images = _images(batch_inputs, batch_data_samples)
        losses: dict[str, Tensor] = own(images, targets)
        return losses

    @torch.no_grad()
    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Any, rescale: bool = True
    ) -> Any:
        """Returns the samples with ``pred_instances``."""
        ask = getattr(self.detector, 'predict', self.detector)
        found = list(ask(_images(batch_inputs, batch_data_samples)))
        if len(found) != len(batch_data_samples):
            raise ConfigError(
                f'{type(self.detector).__name__} gave predictions for {len(found)} of '
                f'{len(batch_data_samples)} images: predict() returns a list of dicts.'
            )
        pairs = zip(found, batch_data_samples, strict=True)
        results = [
            self._instances(each, sample, batch_inputs, rescale)
            for each, sample in pairs
        ]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _instances(
        self, found: Any, sample: Any, like: Tensor, rescale: bool
    ) -> InstanceData:
        if not isinstance(found, Mapping) or not set(_FIELDS) <= set(found):
            raise ConfigError(
                f'{type(self.detector).__name__} gave {_in_words(found)} for an image: '
                'a dict of boxes (n, 4), labels (n,) and scores (n,) was expected.'
            )
        boxes, labels, scores = (
            torch.as_tensor(found[key], device=like.device) for key in _FIELDS
        )
        boxes = boxes.to(like).reshape(-1, 4)
        if rescale and 'scale_factor' in sample:
            boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
        return InstanceData(bboxes=boxes, labels=labels.long(), scores=scores.to(like))

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """Has none: what is wrapped has features of its own."""
        raise NotImplementedError

    _forward = extract_feat


def _images(batch_inputs: Tensor, samples: Sequence[Any]) -> list[Tensor]:
    """Returns the images of a batch without its padding."""
    pairs = zip(batch_inputs, samples, strict=True)
    return [
        image[:, : sample.img_shape[0], : sample.img_shape[1]]
        for image, sample in pairs
    ]


def _boxes(boxes: Any) -> Tensor:
    tensor: Tensor = getattr(boxes, 'tensor', boxes)
    return tensor


def _in_words(found: Any) -> str:
    if isinstance(found, Mapping):
        return f'a dict of {", ".join(map(str, found)) or "nothing"}'
    return f'a {type(found).__name__}'
