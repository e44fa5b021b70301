"""APGD: projected gradient ascent that chooses its own step sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..registry import ATTACKS
from ..threat import ThreatModel
from ..utils.validation import positive_int, share
from .base import Attack, Best, Generators, Oracle, Preset, one_each
from .pgd import PGD
from .search import Search, SparseSearch

# (multiple of eps, share of the steps): the larger radii of arXiv 2103.01208.
LARGER_RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


@ATTACKS.register_module()
class APGD(Attack):
    """Auto-PGD (Croce and Hein, arXiv 2003.01690; for l1 arXiv 2103.01208).

    A search by projected gradient ascent in which every image has its own step size,
    so that neither a step size nor a schedule has to be tuned:

    - linf and l2 (2003.01690, Alg. 1): the first step size is ``2 * eps``, steps carry
      a quarter of the one before (momentum 0.75). At checkpoints, which get denser,
      an image's step size is halved and it goes back to its best iterate if too few
      steps since the last checkpoint raised the objective (at most the share
      ``rho``), or if neither the step size nor the best value changed there.
    - l1 (2103.01208): no momentum; a step moves the values with the largest
      gradients by equal amounts. Every 4 % of the steps the share that moves becomes
      2/3 of the share of values that the best iterate has changed; where that number
      fell by over 5 %, the step size returns to its first value, eps, and the image to
      its best iterate, else the step size is divided by 1.5, down to ``eps / 10``.

    Unlike in the authors' code, a step in l2 or l1 is made of the values that the pixel
    range lets move, and is projected onto the nearest point of ball and range. Theirs
    loses in l2 a part of the radius to pixels that are black or white already, and may
    in l1 never move, if these have the largest gradients.

    The first step always counts as one that raised the objective: it crosses the whole
    ball and says nothing about oscillation. An iterate whose objective or gradient is
    not finite is never the best one.

    What an image becomes depends on no other image of the batch, unless the oracle has
    one value for all, which then share their step size. Images of one shape are treated
    in common operations, and the host never waits for the GPU.

    For evaluation leave the defaults; ``num_steps=100`` with ``random_start=True`` is
    what AutoAttack uses. For adversarial training as in arXiv 2303.01870 take
    ``num_steps=2, random_start=False``: both steps are ``2 * eps`` long, the best of
    three iterates is returned, the clean image among them (for l1 with
    ``topk_share=0.05``).

    Cost per image and restart: ``num_steps`` forward and backward passes and one more
    forward pass for the last iterate of each radius (one radius by default), and once
    a forward pass for the clean image where the first start is random or the first
    radius larger than eps.

    Args:
        norm, eps, num_steps, objective, restarts, keep_best: as in :class:`PGD`.
        random_start: as in PGD, but in l1 the start is Gaussian noise (of 255 pixel
            units) projected onto the ball, which changes few values, as the iterates
            do.
        rho: share of steps that must raise the objective, above 0 and at most 1.
        radius_schedule: pairs (multiple of eps, share of the steps), the last multiple
            1: searches in larger balls first, and starts in each at the projection of
            the best iterate of the one before. ``LARGER_RADII`` (3, 2 and 1 eps over
            30, 30 and 40 % of the steps) is that of arXiv 2103.01208 for l1; SEA
            (arXiv 2306.12941) uses 2, 1.5 and 1 for segmentation in linf. Each radius
            is a complete search with its own checkpoints.
        topk_share: l1 only, the share of values that move in the first steps. After a
            start that is itself sparse (a radius before, or a random one in a larger
            ball) the start decides.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """

    search = 'APGD'
    options = {key: each for key, each in PGD.options.items() if key != 'step_size'}
    presets = {'apgd': Preset('all losses', '2003.01690', {'num_steps': 20})}
    customary = {'l1': {'radius_schedule': LARGER_RADII}}

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        num_steps: int = 20,
        objective: str | Sequence[str] = 'total',
        random_start: bool = True,
        restarts: int = 1,
        rho: float = 0.75,
        radius_schedule: Sequence[Sequence[float]] | None = None,
        topk_share: float = 0.2,
        keep_best: bool = True,
    ) -> None:
        super().__init__(norm=norm, eps=eps, objective=objective)
        self.num_steps = positive_int(num_steps, 'num_steps')
        self.restarts = positive_int(restarts, 'restarts')
        self.rho = share(rho, 'rho')
        self.topk_share = share(topk_share, 'topk_share')
        self.phases = _phases(radius_schedule, self.num_steps)
        self.random_start = random_start
        self.keep_best = keep_best

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        generators = one_each(generator, images)
        stacked = _Stacked(oracle, images)
        cleans = stacked.stack(images)
        # Data augmentation may leave the range of valid pixels.
        starts = [clean.clamp(self.threat.lo, self.threat.hi) for clean in cleans]
        best = Best(images)
        if self.keep_best and (self.random_start or len(self.phases) > 1):
            points = stacked.unstack(starts)
            best.offer(points, oracle.value(points))
        for restart in range(self.restarts):
            drawn = self.random_start or restart > 0
            if drawn:
                threat = self._threat(self.phases[0][0])
                starts = stacked.stack(
                    [
                        _random_start(threat, image, own)
                        for image, own in zip(images, generators, strict=True)
                    ]
                )
            searches = self._run(stacked, cleans, starts, drawn)
            if self.keep_best:
                found = stacked.unstack([search.best for search in searches])
                values = stacked.unstack([search.best_value for search in searches])
                best.offer(found, torch.stack(values))
        if self.keep_best:
            return best.images
        return stacked.unstack([search.current for search in searches])

    def _run(
        self, stacked: _Stacked, cleans: list[Tensor], starts: list[Tensor], drawn: bool
    ) -> list[Search]:
        """One run through all radii; the searches of the last one."""
        searches: list[Search] = []
        for phase, (multiple, steps) in enumerate(self.phases):
            threat = self._threat(multiple)
            if searches:
                starts = [
                    threat.project(clean, search.best)
                    for clean, search in zip(cleans, searches, strict=True)
                ]
            sparse = phase > 0 or (drawn and len(self.phases) > 1)
            searches = [
                SparseSearch(threat, clean, start, None if sparse else self.topk_share)
                if threat.norm == 'l1'
                else Search(threat, clean, start, self.rho)
                for clean, start in zip(cleans, starts, strict=True)
            ]
            needs_best = self.keep_best or phase + 1 < len(self.phases)
            _climb(stacked, searches, steps, needs_best)
        return searches

    def _threat(self, multiple: float) -> ThreatModel:
        return replace(self.threat, eps=multiple * self.threat.eps)

    def describe(self) -> dict[str, Any]:
        """See :meth:`Attack.describe`; ``step_size`` is that of the first step."""
        first = SparseSearch.reach if self.threat.norm == 'l1' else Search.reach
        settings = {
            **super().describe(),
            'step_size': first * self.phases[0][0] * self.threat.eps,
            'num_steps': self.num_steps,
            'objective': self.objective.name,
            'restarts': self.restarts,
            'random_start': self.random_start,
            'keep_best': self.keep_best,
            'rho': self.rho,
            'radius_schedule': self.phases,
        }
        if self.threat.norm == 'l1':
            settings['topk_share'] = self.topk_share
        return settings


class _Stacked:
    """An oracle on stacks (n, C, H, W): the images of one shape are one tensor."""

    def __init__(self, oracle: Oracle, images: Sequence[Tensor]) -> None:
        self.oracle = oracle
        places: dict[Any, list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault((image.shape, image.dtype), []).append(place)
        self.places = list(places.values())

    def stack(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack([images[i] for i in group]) for group in self.places]

    def unstack(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        placed = {
            place: image
            for group, stack in zip(self.places, stacks, strict=True)
            for place, image in zip(group, stack.unbind(), strict=True)
        }
        return [placed[place] for place in range(len(placed))]

    def value(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        return self._split(self.oracle.value(self.unstack(stacks)))

    def value_and_grad(self, stacks: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        values, grads = self.oracle.value_and_grad(self.unstack(stacks))
        return list(zip(self._split(values), self.stack(grads), strict=True))

    def _split(self, values: Tensor) -> list[Tensor]:
        # One value for the whole batch counts for each of its images.
        values = values.expand(sum(len(group) for group in self.places))
        return self.stack(values.unbind()) if len(self.places) > 1 else [values]


def _climb(
    stacked: _Stacked, searches: list[Search], num_steps: int, needs_best: bool
) -> None:
    """Runs the searches, whose points the oracle sees as one batch."""
    checkpoints = searches[0].checkpoints(num_steps)
    for step in range(num_steps):
        answers = stacked.value_and_grad([search.current for search in searches])
        for search, (values, grads) in zip(searches, answers, strict=True):
            search.record(values, grads)
            if step in checkpoints:
                search.adapt(checkpoints[step])
            search.advance()
    if needs_best:
        last = stacked.value([search.current for search in searches])
        for search, values in zip(searches, last, strict=True):
            search.record(values, None)


def _random_start(
    threat: ThreatModel, image: Tensor, generator: torch.Generator
) -> Tensor:
    if threat.norm != 'l1':
        return threat.random_start(image, generator)
    noise = torch.randn(image.shape, generator=generator) * (threat.hi - threat.lo)
    return threat.project(image, image + noise.to(image))


def _phases(
    schedule: Sequence[Sequence[float]] | None, num_steps: int
) -> list[tuple[float, int]]:
    """(multiple of eps, number of steps) of each radius."""
    if schedule is None:
        return [(1.0, num_steps)]
    try:
        pairs = [(float(multiple), float(share)) for multiple, share in schedule]
        valid = (
            pairs[-1][0] == 1
            and all(1 <= multiple < math.inf and share > 0 for multiple, share in pairs)
            and math.isclose(sum(share for _, share in pairs), 1, abs_tol=1e-6)
        )
    except (TypeError, ValueError, IndexError):
        valid = False
    if not valid:
        raise ConfigError(
            f'radius_schedule={schedule!r} must be pairs (multiple of eps, share of '
            'the steps) whose multiples are at least 1 and end with 1 and whose shares '
            'sum to 1, like [(3, 0.3), (2, 0.3), (1, 0.4)].'
        )
    steps = [math.ceil(share * num_steps) for _, share in pairs]
    steps[-1] = num_steps - sum(steps[:-1])
    if steps[-1] < 1:
        raise ConfigError(
            f'num_steps={num_steps} is too few for the {len(pairs)} radii of '
            f'radius_schedule={schedule!r}: take more steps or no radius_schedule.'
        )
    return [(multiple, n) for (multiple, _), n in zip(pairs, steps, strict=True)]
