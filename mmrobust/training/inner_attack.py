"""Training methods that attack each batch first and update the weights once on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.optim import OptimWrapper
from torch import Tensor

from ..attacks import APGD, PGD, Attack
from ..batch import float_images, take, with_images, with_samples
from ..distributed import alone, whole
from ..errors import ConfigError
from ..objective import (
    LossOracle,
    Objective,
    expected,
    is_classifier,
    loss_mode,
    make_oracle,
)
from ..region import restored
from ..registry import ADVERSARIES
from ..threat import ThreatModel
from ..utils.models import bare_model, device_of
from ..utils.seeding import derive_seed, undrawn
from .adversary import Adversary
from .mixed import Mixture, read_objective

# Settings of an attack that a checkpoint's meta keeps.
_KEPT = ('step_size', 'num_steps', 'random_start', 'keep_best')


class AttackAdversary(Adversary):
    """Attacks each batch, then makes one stock update on the result.

    The attack sees the model as it is deployed (BatchNorm statistics fixed, no dropout)
    and the batch as one, as the update does. A new method of this kind is a class that
    builds its attack; to attack in another way, override :meth:`perturb`.

    Args:
        attack: any attack on losses. Its threat model and its objective become those of
            the training; while eps warms up, its radius and its ``step_size`` (if it
            has one) are smaller in proportion.
        mixture: objectives of which each batch has one, in place of the attack's.
        **common: ``warmup_iters``, ``share``, ``class_weighting`` and ``awp_gamma`` of
            :class:`Adversary`.
    """

    _attacks_first = True

    def __init__(
        self, attack: Attack, mixture: Mixture | None = None, **common: Any
    ) -> None:
        super().__init__(attack.threat, attack.objective, **common)
        self.mixture = mixture
        self._unasked = mixture.objectives if mixture else [self.objective]
        for objective in self._unasked:
            self._check_objective(objective)
        self.attack: Any = attack
        step_size = getattr(attack, 'step_size', None)
        self._steps = step_size is not None
        self._step_share = step_size / self.eps if step_size and self.eps else 0.0

    def update(
        self, model: Any, optim_wrapper: OptimWrapper, data_batch: dict, iteration: int
    ) -> dict[str, Tensor]:
        """See :meth:`Adversary.update`."""
        bare, device = bare_model(model), device_of(model)
        images = float_images(data_batch, device)
        attacked = self.chosen(iteration, len(images))
        # mmdet's losses are averaged over the processes, so all have to ask for as
        # many, also where no image is to be attacked.
        asked = attacked or ([0] if get_world_size() > 1 else [])
        if asked:
            self._set_radius(self.threat_at(iteration))
            seed = derive_seed('pgd-at', torch.initial_seed(), get_rank(), iteration)
            part = take(with_samples(data_batch), asked)
            if device.type != 'cpu':  # once, not in every step
                part['data_samples'] = [s.to(device) for s in part['data_samples']]
            generator = torch.Generator().manual_seed(seed)
            clean = [images[i] for i in asked]
            if self.mixture:
                self.objective = self.mixture.draw(iteration // self.replays)
            # Losses on another ground truth may be as many as its objects ask for.
            own = alone() if self.objective.changes_losses else nullcontext()
            with whole(model), loss_mode(bare):
                self._ask_all(bare, part, clean)
                with own:
                    adversarial = self.perturb(bare, part, clean, generator)
            if attacked:
                found = restored(adversarial, clean, part['data_samples'])
                for i, image in zip(attacked, found, strict=True):
                    images[i] = image
        batch = with_images(data_batch, images)
        with self.learning(model, optim_wrapper, batch, iteration):
            return model.train_step(batch, optim_wrapper=optim_wrapper)

    def prepare(self, dataset: Any) -> None:
        """See :meth:`Adversary.prepare`; names of classes are those of the data."""
        super().prepare(dataset)
        meta = getattr(dataset, 'metainfo', {})
        for objective in self._unasked:
            objective.class_names = meta.get('thing_classes', meta.get('classes'))

    def _ask_all(self, model: Any, data_batch: dict, images: list[Tensor]) -> None:
        """Asks once for objectives that the model may not have, before all updates."""
        unasked, self._unasked = self._unasked, []
        for objective in unasked:
            if objective.changes_losses or self.mixture:
                with alone(), undrawn(images[0].device):
                    _oracle(model, data_batch, objective).value(images)

    def perturb(
        self,
        model: Any,
        data_batch: dict,
        images: list[Tensor],
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Attacks images.

        Args:
            model: the bare model, in loss mode.
            data_batch: the images' batch, with ground truth on the model's device.
            images: float copies (C, H, W) of its images in pixel units.
            generator: the source of every random draw.

        Returns:
            One adversarial image for each.
        """
        oracle = _oracle(model, data_batch, self.objective)
        oracle = expected(oracle, self.attack.eot)
        return self.attack.perturb(oracle, images, generator)

    def _set_radius(self, threat: ThreatModel) -> None:
        self.attack.threat = threat
        if self._steps:
            self.attack.step_size = self._step_share * threat.eps

    def describe(self) -> dict[str, Any]:
        """See :meth:`Adversary.describe`."""
        self._set_radius(ThreatModel(self.norm, self.eps))  # not that of a warm-up
        inner = self.attack.describe()
        return {
            **super().describe(),
            **({'objective': self.mixture.name} if self.mixture else {}),
            **{key: inner[key] for key in _KEPT if key in inner},
        }


@ADVERSARIES.register_module()
class PGDAdversary(AttackAdversary):
    """PGD-AT: an attack of ``num_steps`` steps on each batch, then one update.

    Madry et al., arXiv 1706.06083. With ``num_steps=1`` and a random start it is fast
    adversarial training (Wong et al., arXiv 2001.03994).

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255, or text like ``'4/255'``.
        step_size: step in pixel units, by default ``2.5 * eps / num_steps`` and at
            most eps; for one step 1.25 * eps is the value of arXiv 2001.03994.
        num_steps: steps of the inner attack, at least 1.
        objective: see :class:`Adversary`; also ``dict(name='mixed', of=[...])``, see
            :class:`.mixed.Mixture`.
        random_start: start at a random point of the ball.
        keep_best: learn from the iterate with the largest loss, at the cost of one
            more forward pass (of a classifier image by image, of a detector for the
            batch as one); otherwise from the last one.
        **common: see :class:`AttackAdversary`.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        num_steps: int = 3,
        objective: str | Sequence[str] | Mapping[str, Any] = 'total',
        random_start: bool = True,
        keep_best: bool = False,
        **common: Any,
    ) -> None:
        single, mixture = read_objective(objective)
        settings = (norm, eps, step_size, num_steps, single, random_start)
        super().__init__(PGD(*settings, keep_best=keep_best), mixture, **common)


@ADVERSARIES.register_module()
class CWATAdversary(PGDAdversary):
    """CWAT: PGD-AT with losses weighted class by class, in attack and update.

    Chen et al., "Class-Aware Robust Adversarial Training for Object Detection", CVPR
    2021: the loss is split by class and each part divided by the number of objects of
    that class, so that frequent classes do not dominate. Two things are simpler here:
    objects are counted over the batch, not in each image, and only classification
    losses are weighted (box losses do not tell the class of their boxes), by weights
    of mean 1 over the classes that occur.

    Args:
        num_steps: one step is the paper's fast version.
        class_weighting: ``'batch'``, or ``'dataset'`` for fixed weights from the
            whole training set, as the code of arXiv 2305.17438 has them.
        **pgd: the other settings of :class:`PGDAdversary`.
    """

    def __init__(
        self,
        *,
        num_steps: int = 1,
        class_weighting: str | None = 'batch',
        **pgd: Any,
    ) -> None:
        super().__init__(num_steps=num_steps, class_weighting=class_weighting, **pgd)


@ADVERSARIES.register_module()
class APGDAdversary(AttackAdversary):
    """PGD-AT with APGD as the inner attack, which chooses its own step sizes.

    Singh, Croce and Hein, arXiv 2303.01870, train ImageNet classifiers with two steps
    of it: both are 2 * eps long, the second carries a quarter of the first, and the
    image with the largest loss is learnt from, the clean one included. Costs per
    update ``num_steps`` forward and backward passes and one forward pass more. A
    detector's batch has its loss, and so its step sizes, in common.

    Args:
        norm: see :class:`PGDAdversary`.
        eps: see :class:`PGDAdversary`.
        num_steps: steps of the inner attack, at least 1.
        objective: see :class:`PGDAdversary`.
        random_start: start at a random point of the ball.
        **common: see :class:`AttackAdversary`.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        num_steps: int = 2,
        objective: str | Sequence[str] | Mapping[str, Any] = 'total',
        random_start: bool = False,
        **common: Any,
    ) -> None:
        share = 0.05  # of the values that move first, in l1: for training
        single, mixture = read_objective(objective)
        attack = APGD(norm, eps, num_steps, single, random_start, topk_share=share)
        super().__init__(attack, mixture, **common)


@ADVERSARIES.register_module()
class MTDAdversary(PGDAdversary):
    """MTD: per image the stronger of the attacks on classification and on boxes.

    Zhang and Wang, "Towards Adversarially Robust Object Detection", arXiv 1907.10310:
    one adversarial image for the classification loss, one for the localisation loss,
    from the same random start; the one with the larger total loss is learnt from. The
    two attacks see the batch as one, the choice is made image by image.

    Costs per update twice the inner attack of :class:`PGDAdversary` and two forward
    passes more.

    Args:
        num_steps: one step as in the paper.
        **pgd: the other settings of :class:`PGDAdversary`; ``objective`` is the loss
            by which the stronger attack is found.
    """

    _attacks_first = False

    def __init__(self, *, num_steps: int = 1, **pgd: Any) -> None:
        super().__init__(num_steps=num_steps, **pgd)
        if self.mixture:
            raise ConfigError(
                'MTDAdversary has its own two objectives and judges by a third: use '
                'PGDAdversary for a mixed one.'
            )
        self._tasks = (Objective('cls'), Objective('reg'))

    def perturb(
        self,
        model: Any,
        data_batch: dict,
        images: list[Tensor],
        generator: torch.Generator,
    ) -> list[Tensor]:
        """See :meth:`AttackAdversary.perturb`."""
        if is_classifier(model):
            raise ConfigError(
                'MTDAdversary chooses between attacks on classes and on boxes: take '
                'PGDAdversary for a classifier.'
            )
        start = generator.get_state()
        candidates = []
        for task in self._tasks:
            generator.set_state(start)
            oracle = _oracle(model, data_batch, task)
            candidates.append(self.attack.perturb(oracle, images, generator))
        judge = make_oracle(
            model, data_batch, data_batch['data_samples'], self.objective
        )
        # The same random samples (two-stage detectors draw them) for both.
        state = torch.get_rng_state()
        values = []
        for candidate in candidates:
            torch.set_rng_state(state)
            with alone():  # image by image, and some processes may have more of them
                values.append(judge.value(candidate))
        stronger = torch.stack(values).argmax(0).tolist()
        return [candidates[task][i] for i, task in enumerate(stronger)]

    def describe(self) -> dict[str, Any]:
        """See :meth:`Adversary.describe`."""
        settings = super().describe()
        return {**settings, 'objective': f'cls or reg, by {settings["objective"]}'}


def _oracle(model: Any, data_batch: dict, objective: Objective) -> LossOracle:
    """Returns the loss of the batch as one, which the update will see."""
    return make_oracle(
        model, data_batch, data_batch['data_samples'], objective, per_image=False
    )
