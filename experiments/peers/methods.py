"""What is compared: mmrobust's attacks, and what every attack has to offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from inputs import CPU, Batch, Setup
from mmrobust.attacks import APGD, PGD, Attack
from mmrobust.objective import LossOracle, Seams, StackedOracle, find_seams
from mmrobust.utils.seeding import attack_generator, seeded
from torch import Tensor, nn

# Takes a batch inside loss_mode; returns the attacked images in pixel units.
Method = Callable[[Batch], list[Tensor]]


class Ours:
    """An attack of mmrobust, as its evaluation runs it: image by image.

    Args:
        together: ``'stacked'`` as with ``attack_batch_size``: the images of a batch
            share the network's passes and each keeps its own loss; ``'whole batch'`` as
            the peers do: one loss for all.
    """

    def __init__(self, setup: Setup, attack: Attack, together: str = '') -> None:
        self.model, self.attack, self.together = setup.model, attack, together
        self.seams: Seams | None = None

    def __call__(self, batch: Batch) -> list[Tensor]:
        """See :data:`Method`."""
        if self.together:
            return self._perturb(batch)
        return [image for part in batch.split() for image in self._perturb(part)]

    def _perturb(self, batch: Batch) -> list[Tensor]:
        with seeded(batch.seeds[0], CPU):
            draws = [attack_generator(seed) for seed in batch.seeds]
            return self.attack.perturb(self._oracle(batch), batch.images, draws)

    def _oracle(self, batch: Batch) -> LossOracle:
        basis = self.model, batch.data, batch.samples, self.attack.objective
        if self.together != 'stacked':
            return LossOracle(*basis, per_image=not self.together)
        if self.seams is None:
            one = batch.split()[0]
            self.seams = find_seams(self.model, one.data, one.samples)
        return StackedOracle(*basis, self.seams, batch.seeds)


def ours(
    setup: Setup, eps: float, step_size: float, num_steps: int, whole_batch: bool
) -> dict[str, Method]:
    """The PGD of mmrobust, from the image and from a random start, and its APGD."""

    def pgd(random_start: bool, keep_best: bool) -> PGD:
        return PGD(
            eps=eps,
            step_size=step_size,
            num_steps=num_steps,
            objective=setup.terms,
            random_start=random_start,
            keep_best=keep_best,
        )

    size: dict[str, Any] = {'eps': eps, 'num_steps': num_steps}
    methods: dict[str, Method] = {
        'PGD': Ours(setup, pgd(False, True)),
        'PGD, last': Ours(setup, pgd(False, False)),
        'PGD, random start': Ours(setup, pgd(True, True)),
        'PGD, random start, last': Ours(setup, pgd(True, False)),
        'APGD': Ours(setup, APGD(**size, objective=setup.terms)),
        'APGD, ranking': Ours(setup, APGD(**size, objective='ranking')),
    }
    if whole_batch:
        for together in ('stacked', 'whole batch'):
            name = f'PGD, last, {together}'
            methods[name] = Ours(setup, pgd(False, False), together)
    return methods


class Passes:
    """Counts images that go through a network forwards and backwards.

    Counted at the backbone, so that it holds for every attack alike.

    Attributes:
        forwards: images that went through it.
        backwards: images for which a gradient came back to the network's input.
    """

    def __init__(self, model: Any) -> None:
        self.forwards = self.backwards = 0
        backbone: nn.Module = model.backbone
        self._hook = backbone.register_forward_pre_hook(self._count)

    def remove(self) -> None:
        """Ends the count."""
        self._hook.remove()

    def _count(self, module: nn.Module, args: tuple) -> None:
        inputs = args[0]
        self.forwards += len(inputs)
        if torch.is_grad_enabled() and inputs.requires_grad:
            inputs.register_hook(self._came_back)

    def _came_back(self, grad: Tensor) -> None:
        self.backwards += len(grad)
