"""Random noise: the sanity baseline that every attack has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..registry import ATTACKS
from .base import Attack, Generators, Oracle, Preset, one_each


@ATTACKS.register_module()
class RandomNoise(Attack):
    """One random image on the boundary of the ball, without asking the network.

    linf: each value moves by +eps or -eps with equal chance; l2 and l1: a uniformly
    random point of the sphere of radius eps. A model that loses as much to it as to a
    gradient attack is either fragile to noise, or the attack is broken.

    Args:
        norm, eps: see :class:`Attack`.
    """

    search = 'one random draw'
    asks = 'nothing'
    baseline = True
    presets = {'noise': Preset('nothing: the baseline that every attack has to beat')}

    def __init__(self, norm: str = 'linf', eps: float | str = 4) -> None:
        super().__init__(norm=norm, eps=eps)

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        threats = self.threats(oracle, images)
        rows = zip(threats, images, one_each(generator, images), strict=True)
        return [threat.random_boundary(image, own) for threat, image, own in rows]
