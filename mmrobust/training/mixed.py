"""Draws the objective of each batch among several, for methods that attack first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import broadcast_object_list

from ..errors import ConfigError
from ..objective import Objective
from ..utils.seeding import derive_seed


class Mixture:
    """Objectives of which each batch has one, drawn with weights.

    A detector that is trained against one objective is often robust to that alone;
    mixtures of strong attacks with different objectives were found the best to train
    against (arXiv 2602.16494).

    Args:
        of: the objectives, each as :class:`mmrobust.objective.Objective` takes it.
        weights: positive numbers in the same order, which are divided by their sum; all
            alike by default.

    Raises:
        ConfigError: for an unknown objective, or weights that do not go with them.
    """

    def __init__(
        self, of: Sequence[Any] = (), weights: Sequence[float] | None = None
    ) -> None:
        if isinstance(of, str) or not isinstance(of, Sequence) or not of:
            raise ConfigError(
                f'of={of!r} of the mixed objective must be a list of objectives, like '
                "['total', 'dag']."
            )
        self.objectives = [Objective(each) for each in of]
        given = [1.0] * len(of) if weights is None else list(weights)
        numbers = all(isinstance(each, (int, float)) for each in given)
        if len(given) != len(of) or not numbers:
            raise ConfigError(
                f'weights={weights!r} of the mixed objective must be a number for each '
                f'of its {len(of)} objectives.'
            )
        if not all(0 < each < math.inf for each in given):
            raise ConfigError(
                f'weights={weights!r} of the mixed objective must be above 0 and '
                'finite: leave out what is not to be drawn.'
            )
        self.weights = [each / sum(given) for each in given]
        self._seed: int | None = None

    @property
    def name(self) -> str:
        """Returns the objectives with their weights, as reports tell them."""
        pairs = zip(self.weights, self.objectives, strict=True)
        return f'mixed({", ".join(f"{w:.3g} {each.name}" for w, each in pairs)})'

    def draw(self, batch: int) -> Objective:
        """Returns the objective of a batch, for all processes the same.

        Losses are averaged over processes, so that all have to ask for the same ones.

        Args:
            batch: number of the batch in the training.
        """
        if self._seed is None:
            seed = [torch.initial_seed()]
            broadcast_object_list(seed)  # each process may have its own
            self._seed = seed[0]
        generator = torch.Generator()
        generator.manual_seed(derive_seed('objective', self._seed, batch))
        place = torch.multinomial(torch.tensor(self.weights), 1, generator=generator)
        return self.objectives[int(place)]


def read_objective(objective: Any) -> tuple[Any, Mixture | None]:
    """Reads an objective that may be a mixture.

    Args:
        objective: as :class:`mmrobust.objective.Objective` takes it, or a mapping with
            the name ``'mixed'`` and the arguments of :class:`Mixture`.

    Returns:
        A single objective, and the mixture if it is one.
    """
    if not isinstance(objective, Mapping) or objective.get('name') != 'mixed':
        return objective, None
    settings = {key: value for key, value in objective.items() if key != 'name'}
    if unknown := set(settings) - {'of', 'weights'}:
        raise ConfigError(
            f'the mixed objective has the unknown setting {min(unknown)!r}: it takes '
            'of and weights.'
        )
    mixture = Mixture(**settings)
    return settings['of'][0], mixture
