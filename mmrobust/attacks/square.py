"""Square: a random search that needs the objective's values and no gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..registry import ATTACKS
from ..threat import ThreatModel
from ..utils.validation import positive_int, share
from .base import Attack, Best, Generators, Oracle, Preset, finite, one_each
from .pgd import PGD

DETECTIONS = 'detections'

# Of 10 000 proposals, those after which the squares' area is halved: the paper's
# schedule as AutoAttack (arXiv 2003.01690) runs it, stretched to the number asked for.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# A proposal that changes nothing wastes a query; the chance to draw ten is negligible
# unless there is nothing to change, as with eps=0.
_REDRAWS = 10

Window = tuple[slice, slice, slice]


@ATTACKS.register_module()
class Square(Attack):
    """Square Attack (Andriushchenko et al., arXiv 1912.00049), the gradient-free one.

    It does not see gradients, so it also works where they are masked: a model that
    loses more to it than to PGD has hidden its gradients, not become robust.

    - linf: starts from vertical stripes of +-eps. Each query sets a square at a random
      place to +-eps, one sign for each channel, and keeps it if the objective rises.
    - l2: starts from a grid of patterns with a bright and a dark half, five to the
      shorter side. Each query takes the perturbation's mass out of one square and
      puts it, with what is left of eps, into another, where it adds the pattern.
    - l1: the same with the l1 norm in place of the l2 norm and a narrower pattern. As
      in AutoAttack's implementation, the square gets what it has times the number of
      channels, and the projection takes it back from the image's smallest changes.

    The area of the squares is ``p_init`` of the image's at first and halved nine
    times along the way, by the paper's schedule stretched to ``num_queries``. Squares
    are never larger than the image's shorter side. What an image becomes depends on
    no other image of the batch. It is the best of all points tried, the clean image
    among them; there is no early stop.

    Cost per image: ``restarts * num_queries`` forward passes and one for the clean
    image.

    Args:
        norm, eps, restarts, eot: as in :class:`PGD`.
        num_queries: forward passes of a run, its start among them; at least 1. The
            paper takes up to 10 000; fewer find less.
        p_init: share of the image's area that the first squares have, above 0 and at
            most 1.
        objective: ``'detections'`` for what the model finally gives out, after
            non-maximum suppression and thresholds, see
            :func:`mmrobust.objective.detections.damage` (a classifier has its loss
            instead), or a loss, see :class:`mmrobust.objective.Objective`.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """

    search = 'random search'
    asks = 'values'
    options = {
        key: replace(each, parameter='num_queries') if key == 'num_steps' else each
        for key, each in PGD.options.items()
        if key != 'step_size'
    }
    presets = {
        'square': Preset(
            'what is lost of the final detections: score times IoU of each object, and '
            'confident false boxes; no gradients',
            '1912.00049',
            {'num_queries': 1000},
        )
    }

    settings = ('restarts', 'num_queries', 'p_init', 'eot')

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        num_queries: int = 1000,
        p_init: float = 0.8,
        restarts: int = 1,
        objective: str | Sequence[str] = DETECTIONS,
        eot: int = 1,
    ) -> None:
        reads_detections = objective == DETECTIONS
        super().__init__(norm, eps, 'total' if reads_detections else objective, eot)
        self.reads = 'detections' if reads_detections else 'loss'
        self.num_queries = positive_int(num_queries, 'num_queries')
        self.restarts = positive_int(restarts, 'restarts')
        self.p_init = share(p_init, 'p_init')

    def share(self, proposal: int) -> float:
        """Share of the image's area for the squares of a proposal, counted from 0."""
        proposals = max(self.num_queries - 1, 1)
        place = int(proposal / proposals * 10_000)
        return self.p_init / 2 ** sum(place > halving for halving in _HALVINGS)

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        generators = one_each(generator, images)
        threats = self.threats(oracle, images)
        best = Best(oracle, images)
        best.ask(images)
        kind = _Signs if self.threat.norm == 'linf' else _Mass
        for _ in range(self.restarts):
            rows = zip(threats, images, generators, strict=True)
            runs = [kind(*row) for row in rows]
            for query in range(self.num_queries):
                share = self.share(query - 1) if query else None
                points = [run.propose(share) if share else run.best for run in runs]
                shown = [_Run.whole(*pair) for pair in zip(runs, points, strict=True)]
                # A batch may have a value in common.
                values = finite(oracle.value(shown)).expand(len(points))
                for each in zip(runs, points, values.tolist(), strict=True):
                    _Run.learn(*each)
            found = values.new_tensor([run.value for run in runs])
            best.offer([run.whole(run.best) for run in runs], found)
        return best.images

    def describe(self) -> dict[str, Any]:
        """See :meth:`Attack.describe`; ``num_steps`` is the number of queries."""
        detections = self.reads == 'detections'
        return {
            **super().describe(),
            'num_steps': self.num_queries,
            'objective': DETECTIONS if detections else self.objective.name,
        }


class _Run(ABC):
    """One run of the search on one image (C, H, W), or on the picture inside of it."""

    def __init__(
        self, threat: ThreatModel, clean: Tensor, generator: torch.Generator
    ) -> None:
        self._image, self.generator = clean, generator
        self._window, self.threat = threat.window()
        self.clean = clean[self._window]
        self.best, self.value = self.start(), -math.inf

    def whole(self, point: Tensor) -> Tensor:
        """Returns the image with a point in its place, padding around it."""
        if point.shape == self._image.shape:
            return point
        image = self._image.clone()
        image[self._window] = point
        return image

    @abstractmethod
    def start(self) -> Tensor:
        """Returns the first point."""

    def learn(self, point: Tensor, value: float) -> None:
        """Keeps a point that is better than the best."""
        if value > self.value:
            self.best, self.value = point, value

    @abstractmethod
    def propose(self, share: float) -> Tensor:
        """Returns a point to try: the best one but for squares of that share."""

    def _side(self, share: float) -> int:
        height, width = self.clean.shape[-2:]
        return round(math.sqrt(share * height * width))

    def _place(self, side: int) -> Window:
        """A square at a random place; every place that fits is equally likely."""
        top, left = (
            int(torch.randint(0, size - side + 1, (), generator=self.generator))
            for size in self.clean.shape[-2:]
        )
        return slice(None), slice(top, top + side), slice(left, left + side)

    def _signs(self, width: int = 1) -> Tensor:
        """Random signs (C, 1, width)."""
        shape = (self.clean.shape[0], 1, width)
        signs = torch.randint(0, 2, shape, generator=self.generator) * 2 - 1
        return signs.to(self.clean)


class _Signs(_Run):
    """linf: every value moves by +eps or -eps, as far as the pixel range lets it."""

    def start(self) -> Tensor:
        return self._moved((slice(None),) * 3, self._signs(self.clean.shape[-1]))

    def propose(self, share: float) -> Tensor:
        side = min(max(self._side(share), 1), *self.clean.shape[-2:])
        window = self._place(side)
        for _ in range(_REDRAWS):
            square = self._moved(window, self._signs())
            if not torch.equal(square, self.best[window]):
                break
        point = self.best.clone()
        point[window] = square
        return point

    def _moved(self, window: Window, signs: Tensor) -> Tensor:
        clean, threat = self.clean[window], self.threat
        if threat.region is not None:
            threat = replace(threat, region=threat.region[window])
        return threat.project(clean, clean + threat.eps * signs)


class _Mass(_Run):
    """l2 and l1: a perturbation whose mass wanders between squares.

    Mass is the sum of squares (l2) or sizes (l1), of which the ball allows
    ``eps**order`` in total.
    """

    @property
    def order(self) -> int:
        return 2 if self.threat.norm == 'l2' else 1

    def start(self) -> Tensor:
        height, width = self.clean.shape[-2:]
        side = max(min(height, width) // 5, 1)
        delta = torch.zeros_like(self.clean)
        # Centred, as whole tiles need not fill the image.
        for top in range(height % side // 2, height - side + 1, side):
            for left in range(width % side // 2, width - side + 1, side):
                window = slice(top, top + side), slice(left, left + side)
                delta[:, window[0], window[1]] = self._signs() * self._pattern(side)
        return self._within(self._unit(delta, (-3, -2, -1)) * self.threat.eps)

    def propose(self, share: float) -> Tensor:
        # Odd and at least 3, or the pattern would have no centre and no two halves.
        side = min(max(self._side(share), 3) | 1, *self.clean.shape[-2:])
        target, source = self._place(side), self._place(side)
        delta = self.best - self.clean
        budget = self.threat.eps**self.order
        unused = (budget - self._mass(delta).sum()).clamp_min(0)
        old = delta[target].clone()
        available = self._mass(old)
        delta[target] = 0
        available += self._mass(delta[source]) + unused / len(delta)
        delta[source] = 0
        if self.order == 1:
            # More than there is: projecting takes the surplus where there is least.
            available *= len(delta)
        new = self._unit(old) + self._signs() * self._pattern(side)
        delta[target] = self._unit(new) * available ** (1 / self.order)
        return self._within(delta)

    def _within(self, delta: Tensor) -> Tensor:
        return self.threat.project(self.clean, self.clean + delta)

    def _mass(self, delta: Tensor) -> Tensor:
        """Mass of each channel, (C, 1, 1)."""
        return (delta.abs() ** self.order).sum((-2, -1), keepdim=True)

    def _unit(self, delta: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
        """Each channel with norm 1, or the image if ``dims`` says so; 0 stays 0."""
        length = torch.linalg.vector_norm(delta, self.order, dims, keepdim=True)
        return delta / length.clamp_min(torch.finfo(delta.dtype).tiny)

    def _pattern(self, side: int) -> Tensor:
        """The pattern (side, side) of norm 1, upright or lying."""
        pattern = _two_halves(side, self.order)
        if int(torch.randint(0, 2, (), generator=self.generator)):
            pattern = pattern.T
        return pattern.to(self.clean)


@lru_cache(maxsize=64)
def _two_halves(side: int, order: int) -> Tensor:
    """A hill over a valley (1912.00049, section 3.3), together of norm 1."""
    upper = _hill(side // 2, side, order)
    lower = _hill(side - side // 2, side, order)
    pattern = torch.cat([upper, -lower])
    return pattern / torch.linalg.vector_norm(pattern, order)


def _hill(height: int, width: int, order: int) -> Tensor:
    """Values (height, width) of norm 1 that fall from the centre in square rings.

    At distance d it is the sum of 1/j**2 (l2; 1/j**4 for l1) over j = d+1, ..., n+1,
    where n is the distance of the farthest ring.
    """
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    farthest = max(height, width) // 2
    falling = torch.arange(1, farthest + 2).double() ** (-2 if order == 2 else -4)
    sums = falling.flip(0).cumsum(0).flip(0)
    hill = sums[torch.maximum(rows[:, None], columns[None])]
    return hill / torch.linalg.vector_norm(hill, order) if hill.numel() else hill
