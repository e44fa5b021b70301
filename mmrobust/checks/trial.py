"""Trials on single images that a sound evaluation passes, whatever the detector."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..attacks import PGD, Oracle, RandomNoise
from ..utils.seeding import seeded
from .comparison import BROKEN

# Pixel units. Small enough for a loss to be straight, and large enough for its change
# to stand out of rounding (TF32 keeps three digits). Several, because a kink or a
# proposal that comes or goes spoils the difference over one step, hardly over all.
PROBES = (0.01, 0.03, 0.1)

# On the demo's one-stage detectors the agreement is 0.96 to 1. A small Faster R-CNN has
# anything from -10 to 30 at one step size, because its gradient takes proposals for
# constants; below 0 on one image in three, and hardly ever at all step sizes.
AGAINST = 0.75
# At the bottom of a valley, as on an image learned by heart, larger steps agree neither
# way.
NO_SAY = 0.1
# A gradient too short by this factor, on most images and at all step sizes, is a leak.
# Of 16 images each, small FCOS and RetinaNet have at most 1.5 at any step size, and
# Faster R-CNN 4.1 at one of three. In a valley a true gradient seems too long.
LEAK = 10.0

UNBOUNDED_STEPS = 20
SHORT_STEPS = 10

# Relative difference of losses under one seed; AutoAttack calls a model randomised if
# its normalised outputs differ by more. Sums in another order, as on a GPU, stay below.
LOSS_NOISE = 1e-4

# Of scores from 0 to 1. A rounding error may tip one detection over a threshold of IoU.
SCORE_NOISE = 5e-3

# An image that scores less is hardly detected, so that nothing can be taken from it.
DETECTED = 0.05

# By how much a short attack has to lower the mean score more than noise does, as a
# share of the benign one. On the demo's adversarially trained detector at eps 1 it is
# 0.02, on its worst single image -0.02: hence several images where the loss does rise.
NO_BETTER = 0.002
SEVERAL = 4


def examine(
    images: Sequence[Tensor],
    make_oracle: Callable[[], Oracle],
    score: Callable[[list[Tensor]], float],
    generator: torch.Generator,
    norm: str = 'linf',
    eps: float = 4.0,
    asking: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Any]:
    """Makes four trials on one image.

    - Repetition: the objective and the detections of the clean image, twice under one
      global seed and once under another. The objective may depend on the seed (the
      samplers of Faster R-CNN and denoising queries draw from it); what the detector
      finally gives out must not, and nothing may differ under one seed.
    - Gradient: the change of the objective when every value moves 0.01, 0.03 and 0.1
      pixel units along the gradient's sign and against it, as a share of what the
      gradient predicts. It is near 1 if the gradient is that of the objective (a
      two-stage detector's is not quite: proposals count as constants in it). Changes
      that rounding could have made do not count.
    - Unbounded: PGD with eps 255 in linf must destroy every detection (Carlini et al.,
      arXiv 1902.06705; Athalye et al., arXiv 1802.00420, section 3.1). It
      starts at the image: a random start would destroy it without any gradient.
    - Noise: a short PGD in the ball of interest against random noise there.

    Cost: 31 backward passes, 45 forward passes for objectives and 6 for scores.

    Args:
        images: one clean image (C, H, W) in pixel units, in a list. Choose images with
            objects: where there is none, some detectors never find any for sure.
        make_oracle: makes a fresh oracle of the image for the objective ``'total'``.
        score: how well the objects of the image are detected on such a list, from 0 to
            1, see :func:`mmrobust.analysis.image_score`.
        generator: CPU generator for every draw, the global seeds included.
        norm: ``'linf'``, ``'l2'`` or ``'l1'``, of the noise and the short attack.
        eps: their radius in pixel units of 0-255.
        asking: makes the context in which oracles are asked and no predictions are
            made, such as :func:`mmrobust.objective.loss_mode`.

    Returns:
        For :func:`trial_verdicts`, and to be written as JSON:

        - ``loss``, ``loss_spread``: the objective, and the relative difference under
          another seed; ``repeat_spread`` under the same one.
        - ``gradient``: mean size of its values; ``agreements``: share of the predicted
          change that comes, at each step size where that is known; ``agreement``:
          their median, None if there are none.
        - ``score``, ``score_spread``: of the clean image, and the largest difference.
        - ``unbounded_loss``, ``unbounded_score``; ``noise_loss``, ``noise_score``;
          ``attack_loss``, ``attack_score``; ``norm`` and ``eps`` of the last four.
        - ``forwards``, ``backwards``, as the oracles count them (None if they do not),
          and ``predictions``.

        Losses that are not finite are None.

    Raises:
        ConfigError: if norm or eps is out of range.
    """
    first, second = (
        int(seed) for seed in torch.randint(0, 2**62, (2,), generator=generator)
    )
    trial = _Trial(make_oracle, score, images[0].device, asking)
    losses = [trial.loss(images, seed) for seed in (first, first, second)]
    scores = [trial.score(images, seed) for seed in (first, first, second)]
    found: dict[str, Any] = {
        'loss': losses[0],
        'loss_spread': _spread(losses[0], losses[2]),
        'repeat_spread': _spread(losses[0], losses[1]),
        'score': scores[0],
        'score_spread': max(scores) - min(scores),
        **trial.gradient(images, first),
        'norm': norm,
        'eps': float(eps),
    }
    # As text, since small numbers are taken for a mistake in the unit.
    radius = f'{float(eps)!r}/255'
    attacks = {
        'unbounded': PGD(eps=255, num_steps=UNBOUNDED_STEPS, random_start=False),
        'noise': RandomNoise(norm=norm, eps=radius),
        'attack': PGD(norm=norm, eps=radius, num_steps=SHORT_STEPS, random_start=False),
    }
    for name, attack in attacks.items():
        with seeded(first, images[0].device), asking():
            found_images = attack.perturb(trial.oracle(), images, generator)
        found[f'{name}_loss'] = trial.loss(found_images, first)
        found[f'{name}_score'] = trial.score(found_images, first)
    return {**found, **trial.cost()}


class _Trial:
    """Asks under a seed, and counts."""

    def __init__(
        self,
        make_oracle: Callable[[], Oracle],
        score: Callable[[list[Tensor]], float],
        device: torch.device,
        asking: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.make_oracle, self.of, self.device = make_oracle, score, device
        self.asking = asking
        self.oracles: list[Any] = []
        self.predictions = 0

    def oracle(self) -> Oracle:
        self.oracles.append(self.make_oracle())
        return self.oracles[-1]

    def loss(self, images: Sequence[Tensor], seed: int) -> float | None:
        with seeded(seed, self.device), self.asking():
            loss = float(self.oracle().value(images).sum())
        return loss if math.isfinite(loss) else None

    def gradient(self, images: Sequence[Tensor], seed: int) -> dict[str, Any]:
        with seeded(seed, self.device), self.asking():
            _, grads = self.oracle().value_and_grad(images)
        size = sum(float(grad.abs().double().sum()) for grad in grads)
        signs = [grad.sign() for grad in grads]
        agreements = []
        for probe in PROBES if size > 0 else ():
            up, down = (
                self.loss([i + h * s for i, s in zip(images, signs, strict=True)], seed)
                for h in (probe, -probe)
            )
            if up is not None and down is not None and _spread(up, down) > LOSS_NOISE:
                agreements.append((up - down) / (2 * probe * size))
        return {
            'gradient': size / sum(grad.numel() for grad in grads),
            'agreement': statistics.median(agreements) if agreements else None,
            'agreements': agreements,
        }

    def score(self, images: Sequence[Tensor], seed: int) -> float:
        self.predictions += 1
        with seeded(seed, self.device):
            return float(self.of(list(images)))

    def cost(self) -> dict[str, int | None]:
        counts: dict[str, int | None] = {'predictions': self.predictions}
        for name in ('forwards', 'backwards'):
            each = [getattr(oracle, name, None) for oracle in self.oracles]
            known = [count for count in each if count is not None]
            counts[name] = sum(known) if len(known) == len(each) else None
        return counts


def trial_verdicts(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Judges the trials of some images together.

    Args:
        trials: what :func:`examine` returned for each image.

    Returns:
        A sentence for each thing that is suspicious. Images on which hardly anything is
        detected do not enter where the detections have to get worse.
    """
    detected = [t for t in trials if t['score'] >= DETECTED]
    return [
        *_repetition(trials),
        *_paths(trials),
        *_gradients(trials),
        *_unbounded(detected),
        *_noise(detected),
    ]


def _repetition(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    sentences = []
    repeated = [t['repeat_spread'] for t in trials]
    if max(repeated, default=0) > LOSS_NOISE:
        sentences.append(
            f'the loss of one image differs by up to {max(repeated):.2%} between two '
            'calls under the same seed: the model draws random numbers of its own or '
            'changes with use, so gradients are noisy and no attack is repeatable; '
            'seed it, and attack the expectation over several draws (--eot).'
        )
    scores = [t['score_spread'] for t in trials]
    if max(scores, default=0) > SCORE_NOISE:
        changed = sum(value > SCORE_NOISE for value in scores)
        sentences.append(
            f'the detections of {changed} of {len(trials)} images differ between calls '
            f'(score of an image by up to {max(scores):.3f}): the detector is '
            'randomised, and one gradient is that of one draw; average gradients over '
            'draws (--eot 10: expectation over transformation, arXiv 1802.00420) and '
            'evaluate over several seeds.'
        )
    return sentences


def _paths(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [t['path'] for t in trials if t.get('path')]
    # What draws numbers of its own differs in any case.
    if not found or any(t['repeat_spread'] > LOSS_NOISE for t in trials):
        return []
    return [
        f'on {len(found)} of {len(trials)} images prediction differs from the loss: '
        f'{found[0]}; attacks on losses see another network than the one that is '
        'measured, so attack the prediction itself (ranking, also in the ensemble) and '
        'without gradients (square).'
    ]


def _gradients(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    sloped = [t for t in trials if t['loss']]
    flat = [t for t in sloped if t['gradient'] == 0]
    if len(flat) > len(sloped) / 2:
        return [
            f'the gradient of the loss is exactly 0 on {len(flat)} of {len(sloped)} '
            'images: something in front of the losses hides it (rounding, a threshold, '
            'a saturated or detached part) or makes it no number; attack by a '
            'differentiable stand-in.'
        ]
    known = [t['agreements'] for t in trials if t['agreements']]
    wrong = sum(max(shares) < NO_SAY and min(shares) < -NO_SAY for shares in known)
    if len(known) < SEVERAL:
        return []
    leaks = [shares for shares in known if min(map(abs, shares)) > LEAK]
    if len(leaks) > AGAINST * len(known):
        times = statistics.median(abs(s) for shares in leaks for s in shares)
        return [
            f'on {len(leaks)} of {len(known)} images the loss changes far more along '
            f'its gradient than that says ({times:.0f} times as much): something in '
            'front of the losses lets only a part of the gradient through, so that '
            'attacks follow what is left; attack by a differentiable stand-in.'
        ]
    if wrong <= AGAINST * len(known):
        return []
    return [
        f'on {wrong} of {len(known)} images the loss falls along its own gradient: the '
        'gradient has the wrong sign or is not that of the loss; attacks that follow '
        'it lead away from adversarial examples.'
    ]


def _unbounded(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    left = [t for t in trials if t['unbounded_score'] > BROKEN * t['score']]
    if len(left) <= len(trials) / 2:
        return []
    before, after = _mean(left, 'score'), _mean(left, 'unbounded_score')
    rose = sum(_risen(t, 'unbounded_loss') for t in left)
    if rose > len(left) / 2:
        reason = (
            'although the loss rises: the loss that is attacked does not belong to '
            'what is detected (another branch, other inputs or other boxes)'
        )
    else:
        reason = (
            'and the loss does not rise either: the gradient is masked or wrong, or '
            'the model does not look at the image'
        )
    return [
        f'with an unbounded budget (eps 255) {len(left)} of {len(trials)} images are '
        f'still detected (mean score {after:.3f}, benign {before:.3f}), {reason}; '
        'robustness measured by this attack does not count.'
    ]


def _noise(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    trials = [t for t in trials if t['eps'] > 0]
    if not trials:
        return []
    benign, noise = _mean(trials, 'score'), _mean(trials, 'noise_score')
    attack = _mean(trials, 'attack_score')
    # Where noise alone destroys all there is nothing to compare. It may also help,
    # which does not make an attack that changes nothing a good one.
    if noise <= BROKEN * benign or min(noise, benign) - attack > NO_BETTER * benign:
        return []
    rose = sum(_outdoes_noise(t) for t in trials)
    if rose > len(trials) / 2 and len(trials) < SEVERAL:
        return []
    return [
        f'a short attack leaves a mean score of {attack:.3f} on {len(trials)} images, '
        f'no less than random noise of the same norm and eps ({noise:.3f}) or than no '
        f'attack ({benign:.3f}): its gradient is masked or wrong, or the loss does not '
        'concern the detections.'
    ]


def _spread(first: float | None, second: float | None) -> float:
    """Relative difference; 1 if only one of them is finite."""
    if first is None or second is None:
        return float(first is not second)
    largest = max(abs(first), abs(second))
    return abs(first - second) / largest if largest else 0.0


def _outdoes_noise(trial: Mapping[str, Any]) -> bool:
    """Returns whether the attack raises the loss by far more than noise changes it."""
    loss, noise, attack = (trial[k] for k in ('loss', 'noise_loss', 'attack_loss'))
    if loss is None or noise is None or attack is None:
        return False
    return attack - loss > 2 * abs(noise - loss)


def _risen(trial: Mapping[str, Any], name: str) -> bool:
    before, after = trial['loss'], trial[name]
    if before is None or after is None:
        return False
    # An attack without bounds multiplies the loss; samplers make it vary a little.
    return after - before > 0.1 * abs(before)


def _mean(trials: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(t[name] for t in trials) / len(trials)
