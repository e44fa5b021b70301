"""What an attack made of images, and its record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor

from ..utils.packing import pack, unpack


@dataclass
class Outcome:
    """What an attack made of the images of one part of a batch, and at what cost.

    Attributes:
        outputs: the model's predictions on the attacked images.
        forwards: images that went forwards through the network for the attack.
        backwards: images that went backwards through it.
        queries: of the forwards, those of attacks that use no gradient.
        seconds: time of the attack and of the predictions.
        outside: ground-truth boxes that lie outside their image.
        watched: of each image, see :meth:`mmrobust.checks.WatchedOracle.summary`.
        quantized: the predictions on the images as pictures of 8 bits, if asked for.
        radius: the largest perturbation of these in pixel units.
        inputs: the attacked images as the network saw them, (C, H, W) in pixel units;
            None if the outcome comes from a record.
        found: the same in the space of the attack, for saving.
    """

    outputs: list[BaseDataElement]
    forwards: int = 0
    backwards: int = 0
    queries: int = 0
    seconds: float = 0.0
    outside: int = 0
    watched: list[dict[str, Any]] = field(default_factory=list)
    quantized: list[BaseDataElement] | None = None
    radius: float | None = None
    inputs: list[Tensor] | None = field(default=None, repr=False)
    found: list[Tensor] | None = field(default=None, repr=False)

    def cost(self) -> dict[str, Any]:
        """All but predictions and images."""
        return {name: getattr(self, name) for name in _FIGURES}

    def pack(self, part: dict) -> dict[str, Any]:
        """The record of the outcome, see :func:`mmrobust.utils.packing.pack`."""
        record = self.cost()
        for name in ('outputs', 'quantized'):
            predicted = getattr(self, name)
            if predicted is not None:
                pairs = zip(predicted, part['data_samples'], strict=True)
                record[name] = [pack(*pair) for pair in pairs]
        return record

    @classmethod
    def unpack(cls, record: dict[str, Any], part: dict) -> Outcome:
        """The outcome that a record holds."""
        content = {name: record[name] for name in _FIGURES}
        for name in ('outputs', 'quantized'):
            if name in record:
                pairs = zip(record[name], part['data_samples'], strict=True)
                content[name] = [unpack(*pair) for pair in pairs]
        return cls(**content)


_COUNTS = ('forwards', 'backwards', 'queries', 'seconds', 'outside')
_FIGURES = (*_COUNTS, 'watched', 'radius')
