"""Training methods that attack each batch first and update the weights once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.optim import OptimWrapper
from torch import Tensor

from ..attacks import APGD, PGD, Attack
from ..batch import float_images, take, with_images
from ..distributed import alone
from ..errors import ConfigError
from ..objective import LossOracle, Objective, loss_mode
from ..objective.classifier import is_classifier, make_oracle
from ..registry import ADVERSARIES
from ..threat import ThreatModel
from ..utils.models import bare_model, device_of
from ..utils.seeding import derive_seed
from .adversary import Adversary


@ADVERSARIES.register_module()
class PGDAdversary(Adversary):
    """PGD-AT: an attack of ``num_steps`` steps on each batch, then one update.

    Madry et al., arXiv 1706.06083. With ``num_steps=1`` and a random start it is fast
    adversarial training (Wong et al., arXiv 2001.03994). The attack sees the model as
    it is deployed (BatchNorm statistics fixed, no dropout); the update is the stock
    one in training mode.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255.
        step_size: step in pixel units, by default ``2.5 * eps / num_steps`` and at
            most eps; for one step 1.25 * eps is the value of arXiv 2001.03994.
        num_steps: steps of the inner attack, at least 1.
        objective: ``'total'``, ``'cls'``, ``'reg'``, ``'cls+reg'`` or names of loss
            terms.
        random_start: start at a random point of the ball.
        warmup_iters: updates over which eps grows linearly to its full size.
        share: see :class:`Adversary`.
        class_weighting: see :class:`Adversary`.
        keep_best: learn from the iterate with the largest loss, at the cost of one
            more forward pass (of a classifier image by image, of a detector for the
            batch as one); otherwise from the last one.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        num_steps: int = 3,
        objective: str | Sequence[str] = 'total',
        random_start: bool = True,
        warmup_iters: int = 0,
        share: float = 1.0,
        class_weighting: str | None = None,
        keep_best: bool = False,
    ) -> None:
        super().__init__(norm, eps, objective, warmup_iters, share, class_weighting)
        attack = PGD(
            norm,
            f'{self.eps}/255',
            step_size,
            num_steps,
            random_start=random_start,
            keep_best=keep_best,
        )
        self._attack: Attack = attack
        self._step_share = attack.step_size / self.eps if self.eps else 0.0

    def _train_step(
        self,
        model: Any,
        optim_wrapper: OptimWrapper,
        data_batch: dict,
        iteration: int,
    ) -> dict[str, Tensor]:
        bare, device = bare_model(model), device_of(model)
        images = float_images(data_batch, device)
        attacked = [i for i, c in enumerate(self.chosen(iteration, len(images))) if c]
        # mmdet's losses are averaged over the processes, so all have to ask for as
        # many, also where no image is to be attacked.
        asked = attacked or ([0] if get_world_size() > 1 else [])
        if asked:
            self._set_radius(self.threat_at(iteration))
            seed = derive_seed('pgd-at', torch.initial_seed(), get_rank(), iteration)
            part = take(data_batch, asked)
            if device.type != 'cpu':  # once, not in every step
                part['data_samples'] = [s.to(device) for s in part['data_samples']]
            with loss_mode(bare):
                adversarial = self._perturb(
                    bare,
                    part,
                    [images[i] for i in asked],
                    torch.Generator().manual_seed(seed),
                )
            for i, image in zip(asked, adversarial, strict=True):
                if i in attacked:
                    images[i] = image
        return model.train_step(
            with_images(data_batch, images), optim_wrapper=optim_wrapper
        )

    def _set_radius(self, threat: ThreatModel) -> None:
        """Steps shrink with the radius while it warms up."""
        assert isinstance(self._attack, PGD)
        self._attack.threat = threat
        self._attack.step_size = self._step_share * threat.eps

    def _perturb(
        self,
        model: Any,
        data_batch: dict,
        images: list[Tensor],
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Attacks the images, those of ``data_batch`` as float, inside loss mode."""
        return self._attack.perturb(
            _oracle(model, data_batch, self.objective), images, generator
        )

    def describe(self) -> dict[str, Any]:
        """See :meth:`Adversary.describe`."""
        self._set_radius(ThreatModel(self.norm, self.eps))  # not that of a warm-up
        inner = self._attack.describe()
        kept = ('step_size', 'num_steps', 'random_start', 'keep_best')
        return {
            **super().describe(),
            **{key: inner[key] for key in kept if key in inner},
        }


@ADVERSARIES.register_module()
class APGDAdversary(PGDAdversary):
    """PGD-AT with APGD as the inner attack, which chooses its own step sizes.

    Singh, Croce and Hein, arXiv 2303.01870, train ImageNet classifiers with two steps
    of it: both are 2 * eps long, the second carries a quarter of the first, and the
    image with the largest loss is learnt from, the clean one included. Costs per
    update ``num_steps`` forward and backward passes and one forward pass more. A
    detector's batch has its loss, and so its step sizes, in common.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255.
        num_steps: steps of the inner attack, at least 1.
        objective: see :class:`PGDAdversary`.
        random_start: start at a random point of the ball.
        warmup_iters: see :class:`PGDAdversary`.
        share: see :class:`Adversary`.
        class_weighting: see :class:`Adversary`.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        num_steps: int = 2,
        objective: str | Sequence[str] = 'total',
        random_start: bool = False,
        warmup_iters: int = 0,
        share: float = 1.0,
        class_weighting: str | None = None,
    ) -> None:
        super().__init__(
            norm,
            eps,
            objective=objective,
            warmup_iters=warmup_iters,
            share=share,
            class_weighting=class_weighting,
        )
        self._attack = APGD(
            norm,
            f'{self.eps}/255',
            num_steps,
            random_start=random_start,
            topk_share=0.05,  # of l1, in training
        )

    def _set_radius(self, threat: ThreatModel) -> None:
        self._attack.threat = threat


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
        norm: see :class:`PGDAdversary`.
        eps: see :class:`PGDAdversary`.
        step_size: see :class:`PGDAdversary`; for one step eps.
        num_steps: see :class:`PGDAdversary`; one step as in the paper.
        random_start: see :class:`PGDAdversary`.
        warmup_iters: see :class:`PGDAdversary`.
        share: see :class:`Adversary`.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        num_steps: int = 1,
        random_start: bool = True,
        warmup_iters: int = 0,
        share: float = 1.0,
    ) -> None:
        super().__init__(
            norm,
            eps,
            step_size,
            num_steps,
            random_start=random_start,
            warmup_iters=warmup_iters,
            share=share,
        )
        self._tasks = (Objective('cls'), Objective('reg'))

    def _perturb(
        self,
        model: Any,
        data_batch: dict,
        images: list[Tensor],
        generator: torch.Generator,
    ) -> list[Tensor]:
        if is_classifier(model):
            raise ConfigError(
                'MTDAdversary chooses between attacks on classes and on boxes: take '
                'PGDAdversary for a classifier.'
            )
        start = generator.get_state()
        candidates = []
        for task in self._tasks:
            generator.set_state(start)
            candidates.append(
                self._attack.perturb(
                    _oracle(model, data_batch, task), images, generator
                )
            )
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
        return {**super().describe(), 'objective': 'cls or reg, by total'}


@ADVERSARIES.register_module()
class CWATAdversary(PGDAdversary):
    """CWAT: losses weighted class by class, in the attack and in the update.

    Chen et al., "Class-Aware Robust Adversarial Training for Object Detection", CVPR
    2021: the loss is split by class and each part divided by the number of objects of
    that class, so that frequent classes do not dominate. Two things are simpler here:
    objects are counted over the batch, not in each image, and only classification
    losses are weighted (box losses do not tell the class of their boxes), by weights
    of mean 1 over the classes that occur.

    Args:
        norm: see :class:`PGDAdversary`.
        eps: see :class:`PGDAdversary`.
        step_size: see :class:`PGDAdversary`; for one step eps.
        num_steps: see :class:`PGDAdversary`; one step is the paper's fast version.
        objective: see :class:`PGDAdversary`.
        random_start: see :class:`PGDAdversary`.
        warmup_iters: see :class:`PGDAdversary`.
        share: see :class:`Adversary`.
        class_weighting: ``'batch'``, or ``'dataset'`` for fixed weights from the
            whole training set, as the code of arXiv 2305.17438 has them.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        num_steps: int = 1,
        objective: str | Sequence[str] = 'total',
        random_start: bool = True,
        warmup_iters: int = 0,
        share: float = 1.0,
        class_weighting: str | None = 'batch',
    ) -> None:
        super().__init__(
            norm,
            eps,
            step_size,
            num_steps,
            objective,
            random_start,
            warmup_iters,
            share,
            class_weighting,
        )


def _oracle(model: Any, data_batch: dict, objective: Objective) -> LossOracle:
    """The batch as one: what the update will see, at the cost of one pass a step."""
    return make_oracle(
        model, data_batch, data_batch['data_samples'], objective, per_image=False
    )
