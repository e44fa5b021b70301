"""Projected gradient ascent, of which FGSM is the one-step case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ..errors import ConfigError
from ..objective import NAMED, TARGETS
from ..registry import ATTACKS
from ..utils.validation import positive_int, to_pixels
from .base import (
    EOT,
    RESTARTS,
    Attack,
    Best,
    Generators,
    Option,
    Oracle,
    Preset,
    one_each,
)

# Options by the default target of an objective.
_TARGETS: dict[str | None, dict[str, Option]] = {
    'most-likely': {
        'target': Option(
            'objective.target',
            'which other class mislabel and dag aim at (default most-likely)',
            choices=TARGETS,
        )
    },
    'given': {
        'target_class': Option(
            'objective.target_class',
            'the class that targeted aims at, by name or number',
            metavar='NAME',
        )
    },
}

# Steps and start of cls, reg and cwa are those of the COCO evaluation in the code of
# arXiv 2305.17438: eps 4, step 1, 10 steps, from the clean image.
_PAPER = '2305.17438'

_PRESETS = {
    'fgsm': Preset(
        'all losses',
        '1412.6572',
        {'num_steps': 1, 'random_start': False},
        without=('num_steps', 'restarts'),
    ),
    'pgd': Preset('all losses', '1706.06083', {'num_steps': 20}),
    'cls': Preset(
        "the head's classification loss",
        _PAPER,
        {'objective': 'cls', 'random_start': False},
    ),
    'reg': Preset(
        "the head's box loss", _PAPER, {'objective': 'reg', 'random_start': False}
    ),
    'cwa': Preset(
        "the head's classification and box loss, classes weighted by rarity",
        _PAPER,
        {'objective': 'cwa', 'random_start': False},
    ),
    **{
        name: Preset(
            kind.maximises,
            kind.source,
            {'num_steps': 20, 'objective': name},
            _TARGETS.get(kind.target, {}),
            aimed=True,
        )
        for name, kind in NAMED.items()
        if kind.maximises
    },
}


@ATTACKS.register_module()
class PGD(Attack):
    """PGD (Madry et al., arXiv 1706.06083), with restarts and the best iterate kept.

    Steps are those of :meth:`mmrobust.threat.ThreatModel.ascend`. Of all iterates and
    restarts the one with the largest objective is returned, image by image; the clean
    image counts as an iterate, so the result is never worse than the start.

    Cost per image and restart: ``num_steps`` forward and backward passes, one more
    forward pass for the value of the last iterate, and once for the clean image where
    the first start is random.

    Args:
        norm, eps, objective: see :class:`Attack`.
        step_size: step in pixel units; by default ``2.5 * eps / num_steps``, at most
            eps, so that every point of the ball can be reached.
        num_steps: number of steps, at least 1.
        random_start: start at a random point of the ball, not at the image. Restarts
            after the first always do.
        restarts: number of runs, at least 1.
        keep_best: return the best iterate; otherwise the last one of the last run,
            without the extra forward passes, as adversarial training needs it.
        eot: see :class:`Attack`; all passes as many times.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """

    search = 'PGD'
    options = {
        **Attack.options,
        'step_size': Option(
            'step_size', 'size of a step (default 2.5 * eps / steps, at most eps)'
        ),
        'num_steps': Option('num_steps', 'steps of a run', int, curve=True),
        'restarts': RESTARTS,
        'eot': EOT,
    }
    presets = _PRESETS
    settings: ClassVar[tuple[str, ...]] = (
        *('step_size', 'num_steps', 'objective', 'restarts'),
        *('random_start', 'keep_best', 'eot'),
    )

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        num_steps: int = 10,
        objective: str | Sequence[str] = 'total',
        random_start: bool = True,
        restarts: int = 1,
        keep_best: bool = True,
        eot: int = 1,
    ) -> None:
        super().__init__(norm, eps, objective, eot)
        self.num_steps = positive_int(num_steps, 'num_steps')
        self.restarts = positive_int(restarts, 'restarts')
        self.step_size = _step_size(step_size, self.threat.eps, self.num_steps)
        self.random_start = random_start
        self.keep_best = keep_best

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`."""
        threats = self.threats(oracle, images)
        best = Best(oracle, images, self.keep_best)
        if self.random_start:
            best.ask(images)
        for restart in range(self.restarts):
            current = list(images)
            if self.random_start or restart > 0:
                rows = zip(threats, images, one_each(generator, images), strict=True)
                current = [ball.random_start(image, own) for ball, image, own in rows]
            for _ in range(self.num_steps):
                values, grads = oracle.value_and_grad(current)
                best.offer(current, values)
                steps = zip(threats, images, current, grads, strict=True)
                current = [
                    ball.ascend(image, point, grad, self.step_size)
                    for ball, image, point, grad in steps
                ]
            best.ask(current)
        return best.images


def _step_size(step_size: float | str | None, eps: float, num_steps: int) -> float:
    if step_size is None:
        return min(eps, 2.5 * eps / num_steps)
    try:
        size = float(step_size)
    except (TypeError, ValueError):
        size = to_pixels(step_size, 'step_size')
    if not 0 <= size < float('inf'):
        # Same sentence as for eps; this always raises.
        return to_pixels(step_size, 'step_size')
    if eps > 0 and size < eps / 200:
        raise ConfigError(
            f'step_size={step_size!r} is under a 200th of eps={eps:g}, so the attack '
            'would hardly move: step_size is in pixel units of 0-255, like '
            f'step_size={2.5 * eps / num_steps:.3g} here.'
        )
    return size
