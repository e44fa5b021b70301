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

    Projected gradient ascent in which every image has its own step size, so that
    neither a step size nor a schedule has to be tuned:

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
    not finite is never the best one. What an image becomes depends on no other image of
    the batch, unless the oracle has one value for all, which then share their step
    size. Images of one shape are treated in common operations, and the host never waits
    for the GPU.

    For evaluation leave the defaults; ``num_steps=100`` with ``random_start=True`` is
    what AutoAttack uses. For adversarial training as in arXiv 2303.01870 take
    ``num_steps=2, random_start=False``: both steps are ``2 * eps`` long, the best of
    three iterates is returned, the clean image among them (for l1 with
    ``topk_share=0.05``).

    Cost per image and restart: ``num_steps`` forward and backward passes, one more
    forward pass for the last iterate of each radius, and once for the clean image
    where the first start is random or the first radius larger than eps.

    Args:
        norm, eps, num_steps, objective, restarts, keep_best, eot: as in :class:`PGD`.
        random_start: as in PGD, but in l1 the start is Gaussian noise (of 255 pixel
            units) projected onto the ball, which changes few values, as the iterates
            do.
        rho: share of steps that must raise the objective, above 0 and at most 1.
        radius_schedule: pairs (multiple of eps, share of the steps), the last multiple
            1: complete searches in larger balls first, each from the projection of the
            best iterate of the one before. ``LARGER_RADII`` (3, 2 and 1 eps over 30, 30
            and 40 % of the steps) is that of arXiv 2103.01208 for l1; SEA (arXiv
            2306.12941) uses 2, 1.5 and 1 for segmentation in linf.
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
    settings = (
        *('num_steps', 'objective', 'restarts', 'random_start', 'keep_best'),
        *('rho', 'radius_schedule', 'eot'),
    )

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
        eot: int = 1,
    ) -> None:
        super().__init__(norm, eps, objective, eot)
        self.num_steps = positive_int(num_steps, 'num_steps')
        self.restarts = positive_int(restarts, 'restarts')
        self.rho = share(rho, 'rho')
        self.topk_share = share(topk_share, 'topk_share')
        self.radius_schedule = _phases(radius_schedule, self.num_steps)
        self.random_start = random_start
        self.keep_best = keep_best

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        threats, cleans = self.threats(oracle, images), _stack(images)
        # Data augmentation may leave the range of valid pixels.
        starts = [clean.clamp(self.threat.lo, self.threat.hi) for clean in cleans]
        best = Best(oracle, images, self.keep_best)
        if self.random_start or len(self.radius_schedule) > 1:
            best.ask(_unstack(starts))
        for restart in range(self.restarts):
            drawn = self.random_start or restart > 0
            if drawn:
                multiple, _ = self.radius_schedule[0]
                rows = zip(threats, images, one_each(generator, images), strict=True)
                starts = _stack([_random_start(multiple, *row) for row in rows])
            balls = _together(threats, cleans)
            searches = self._run(oracle, balls, cleans, starts, drawn)
            if self.keep_best:
                found = _unstack([search.best for search in searches])
                best.offer(found, torch.cat([each.best_value for each in searches]))
            else:
                best.ask(_unstack([search.current for search in searches]))
        return best.images

    def _run(
        self,
        oracle: Oracle,
        threats: list[ThreatModel],
        cleans: list[Tensor],
        starts: list[Tensor],
        drawn: bool,
    ) -> list[Search]:
        """One run through all radii; the searches of the last one."""
        searches: list[Search] = []
        for phase, (multiple, steps) in enumerate(self.radius_schedule):
            balls = [_larger(threat, multiple) for threat in threats]
            if searches:
                rows = zip(balls, cleans, searches, strict=True)
                starts = [ball.project(clean, each.best) for ball, clean, each in rows]
            sparse = phase > 0 or (drawn and len(self.radius_schedule) > 1)
            searches = [
                SparseSearch(*row, None if sparse else self.topk_share)
                if self.threat.norm == 'l1'
                else Search(*row, self.rho)
                for row in zip(balls, cleans, starts, strict=True)
            ]
            needs_best = self.keep_best or phase + 1 < len(self.radius_schedule)
            _climb(oracle, searches, steps, needs_best)
        return searches

    def describe(self) -> dict[str, Any]:
        """See :meth:`Attack.describe`; ``step_size`` is that of the first step."""
        sparse = self.threat.norm == 'l1'
        reach = SparseSearch.reach if sparse else Search.reach
        return {
            **super().describe(),
            'step_size': reach * self.radius_schedule[0][0] * self.threat.eps,
            **({'topk_share': self.topk_share} if sparse else {}),
        }


def _stack(images: Sequence[Tensor]) -> list[Tensor]:
    """One stack (N, C, H, W) of images of one shape, or else every image alone."""
    if len({image.shape for image in images}) == 1:
        return [torch.stack(list(images))]
    return [image[None] for image in images]


def _together(
    threats: Sequence[ThreatModel], stacks: Sequence[Tensor]
) -> list[ThreatModel]:
    """The threat model of each stack."""
    if len(threats) == len(stacks):
        return list(threats)
    if all(threat.region is None for threat in threats):
        return [threats[0]]
    whole = torch.ones_like(stacks[0][0, :1], dtype=torch.bool)
    regions = [whole if each.region is None else each.region for each in threats]
    return [replace(threats[0], region=torch.stack(regions))]


def _larger(threat: ThreatModel, multiple: float) -> ThreatModel:
    return replace(threat, eps=multiple * threat.eps)


def _unstack(stacks: Sequence[Tensor]) -> list[Tensor]:
    return [image for stack in stacks for image in stack]


def _climb(
    oracle: Oracle, searches: list[Search], num_steps: int, needs_best: bool
) -> None:
    """Runs the searches, whose points the oracle sees as one batch."""
    sizes = [len(search.clean) for search in searches]
    checkpoints = searches[0].checkpoints(num_steps)

    def current() -> list[Tensor]:
        return _unstack([search.current for search in searches])

    def split(values: Tensor) -> tuple[Tensor, ...]:
        # One value for the whole batch counts for each of its images.
        return values.expand(sum(sizes)).split(sizes)

    for step in range(num_steps):
        values, grads = oracle.value_and_grad(current())
        for search, *answer in zip(searches, split(values), _stack(grads), strict=True):
            search.record(*answer)
            if step in checkpoints:
                search.adapt(checkpoints[step])
            search.advance()
    if needs_best:
        last = split(oracle.value(current()))
        for search, own in zip(searches, last, strict=True):
            search.record(own, None)


def _random_start(
    multiple: float, threat: ThreatModel, image: Tensor, generator: torch.Generator
) -> Tensor:
    threat = _larger(threat, multiple)
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
        radii, shares = zip(*pairs, strict=True)
        valid = radii[-1] == 1 <= min(radii) and max(radii) < math.inf
        valid = valid and min(shares) > 0 and math.isclose(sum(shares), 1, abs_tol=1e-6)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ConfigError(
            f'radius_schedule={schedule!r} must be pairs (multiple of eps, share of '
            'the steps) whose multiples are at least 1 and end with 1 and whose shares '
            'sum to 1, like [(3, 0.3), (2, 0.3), (1, 0.4)].'
        )
    steps = [math.ceil(share * num_steps) for share in shares]
    steps[-1] = num_steps - sum(steps[:-1])
    if steps[-1] < 1:
        raise ConfigError(
            f'num_steps={num_steps} is too few for the {len(pairs)} radii of '
            f'radius_schedule={schedule!r}: take more steps or no radius_schedule.'
        )
    return list(zip(radii, steps, strict=True))
