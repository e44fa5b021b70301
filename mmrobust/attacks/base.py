"""The common basis of all attacks: what each tells about itself, and what it may ask.

To add an attack, write a class in a file of its own and list it in ``presets.py``; the
command line, ``--help``, the table in docs/attacks.md, the checks and the report read
the class. What it finds is tested by a row in tests/attacks/test_closed_form.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ..corruptions import Corruption
from ..objective import Objective
from ..patches import Place
from ..threat import NORMS, ThreatModel
from ..utils.validation import positive_int, to_pixels

# One for all images of a batch, or one for each.
Generators = torch.Generator | Sequence[torch.Generator]


class Oracle(Protocol):
    """Values and gradients of an objective on a fixed batch of N images.

    :class:`mmrobust.objective.LossOracle` is the detector's; an attack knows no more
    of the network than this. An oracle that knows where objects are may also have a
    context ``moved``, see :meth:`mmrobust.objective.LossOracle.moved`, and ``boxes``
    (n, 4) of each image's objects in its frame, None where there are none; one of
    images with padding has ``regions``, see :func:`regions_of`.
    """

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """Objective (N,) of images (C, H, W)."""
        ...

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Objective (N,) and its gradient with respect to each image."""
        ...


@dataclass(frozen=True)
class Option:
    """An option of the command line, which sets a parameter of attacks.

    Attributes:
        parameter: the constructor's argument that it sets. ``'objective.target'`` sets
            the ``target`` in the mapping that is the ``objective``.
        help: text for ``--help``, to which defaults are added if they differ by attack.
        type: turns the text of the command line into a value.
        choices: the possible values, None if there are others.
        metavar: what ``--help`` calls the value, None for argparse's own choice.
        curve: several values make one attack each.
    """

    parameter: str
    help: str
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    curve: bool = False


@dataclass(frozen=True)
class Preset:
    """A name under which the command line and configs know an attack.

    Attributes:
        maximises: what the attack makes large, one line of Markdown for the docs.
        source: arXiv number of the paper, or Markdown that says where it comes from.
        settings: arguments of the constructor that differ from its defaults.
        options: options beside those of the class.
        without: options of the class that the preset does not have.
        aimed: the attack differs from others by its objective only, which every search
            can have; such names stand last in lists.
    """

    maximises: str
    source: str = ''
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    aimed: bool = False


EPS = Option('eps', 'radius of the perturbation (default 4)', curve=True)
NORM = Option('norm', 'linf (default), l2 or l1', choices=NORMS)
RESTARTS = Option('restarts', 'runs per image (default 1)', int)
EOT = Option(
    'eot', 'draws of a randomised model in each value and gradient (default 1)', int
)


class Attack(ABC):
    """Finds an image in the threat model that makes the objective large.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255, or text like ``'4/255'``.
        objective: see :class:`mmrobust.objective.Objective`.
        eot: what the oracle answers is to be the mean over so many draws, see
            :func:`mmrobust.objective.expected`. Whoever makes the oracle does it.

    Attributes:
        search: what the docs call the search.
        asks: what it asks the oracle for: ``'gradients'`` (and values), ``'values'``
            or ``'nothing'``.
        baseline: every attack is expected to find more than this one.
        transferable: its images are made to work on other models, too, and may be
            weaker on this one than those of other attacks.
        reads: the oracle that it needs: ``'loss'`` for
            :class:`mmrobust.objective.LossOracle` on ``objective``, ``'detections'``
            for :class:`mmrobust.objective.detections.DetectionOracle` (a classifier,
            which has no detections, gets its loss).
        members: attacks by name that run in its place, of which the worst counts; None
            for an attack that runs itself.
        corruption: what is done to the pictures on disk before it; None for nothing.
        settings: names of the attributes that the report has of it.
        presets: its names on the command line.
        options: its options on the command line.
        customary: arguments by norm that its presets have there.

    Raises:
        ConfigError: if an argument is unknown or out of range.
    """

    search: str = ''
    asks: Literal['gradients', 'values', 'nothing'] = 'gradients'
    baseline: bool = False
    transferable: ClassVar[bool] = False
    reads: Literal['loss', 'detections'] = 'loss'
    members: dict[str, Attack] | None = None
    corruption: Corruption | None = None
    settings: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Preset]] = {}
    options: ClassVar[Mapping[str, Option]] = {'norm': NORM, 'eps': EPS}
    customary: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        objective: str | Sequence[str] | Mapping[str, Any] = 'total',
        eot: int = 1,
    ) -> None:
        self.eot = positive_int(eot, 'eot')
        self.threat = ThreatModel(norm=norm, eps=to_pixels(eps, norm=norm))
        self.objective = Objective(objective)

    @abstractmethod
    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """Returns one adversarial image for every clean one.

        Args:
            oracle: the objective on this batch.
            images: clean images (C, H, W) in pixel units, on the network's device.
            generator: CPU generator for every random draw, or one for each image, so
                that its draws depend on no other image.

        Returns:
            Images of the same shapes inside the threat model; what lies outside of
            :func:`regions_of` is put back by whoever asked for them.
        """

    def threats(self, oracle: Oracle, images: Sequence[Tensor]) -> list[ThreatModel]:
        """Returns the threat model of each image, with its region where it has one."""
        pairs = zip(regions_of(oracle, images), images, strict=True)
        return [self.threat.within(region, image) for region, image in pairs]

    def doubts(self, dataset: Any) -> list[str]:
        """Says, before the first pass, why its figures on a dataset are doubtful.

        Raises:
            ConfigError: if they would be worth nothing.
        """
        return []

    def controls(self) -> dict[str, Attack]:
        """Returns attacks by name that are always made beside it, to compare with.

        A name stands behind that of the attack: ``random`` for ``patch-random``.
        """
        return {}

    def patches(
        self, oracle: Oracle, images: Sequence[Tensor]
    ) -> list[list[Place]] | None:
        """Returns where the patches of each image lie; None for other attacks."""
        return None

    def describe(self) -> dict[str, Any]:
        """Returns the settings that define the attack, for the report."""
        told = {name: getattr(self, name) for name in self.settings}
        if 'objective' in told:
            told['objective'] = self.objective.name
        return {
            'norm': self.threat.norm,
            'eps': self.threat.eps,
            'step_size': None,
            'num_steps': 0,
            'objective': None,
            'restarts': 1,
            'gradient_free': self.asks == 'values',
            **told,
        }


class Best:
    """The images with the largest values that were offered, for each image of a batch.

    Args:
        oracle: answers :meth:`ask`.
        images: what :attr:`images` is until something was offered.
        keep: otherwise the last images that were offered are the best, and no value
            is asked for.
    """

    def __init__(
        self, oracle: Oracle, images: Sequence[Tensor], keep: bool = True
    ) -> None:
        self.images = list(images)
        self._oracle, self._keep = oracle, keep
        self._values: Tensor | None = None

    def ask(self, images: Sequence[Tensor]) -> None:
        """Offers images whose values are not known."""
        self.offer(images, self._oracle.value(images) if self._keep else None)

    def offer(self, images: Sequence[Tensor], values: Tensor | None) -> None:
        """Keeps images (C, H, W) whose values (N,), or common value (1,), are larger.

        A value that is not finite is the smallest of all.
        """
        if values is None or not self._keep:
            self.images = list(images)
            return
        values = finite(values).expand(len(images))
        if self._values is None:
            self.images, self._values = list(images), values
            return
        better = values > self._values
        # torch.where instead of an if: no waiting for the GPU in every step.
        self.images = [
            torch.where(*three)
            for three in zip(better, images, self.images, strict=True)
        ]
        self._values = torch.where(better, values, self._values)


def regions_of(oracle: Oracle, images: Sequence[Tensor]) -> list[Tensor | None]:
    """Which pixels of each image may change, bool (1, H, W); None for all of them."""
    return getattr(oracle, 'regions', None) or [None] * len(images)


def finite(values: Tensor) -> Tensor:
    """Returns the values with -inf for those that are not finite.

    An overflow is no success: without this, one NaN would win or lose for good.
    """
    return torch.nan_to_num(
        values.detach(), nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf
    )


def one_each(
    generator: Generators, images: Sequence[Tensor]
) -> Sequence[torch.Generator]:
    """Returns a generator for every image, the same one if there is only one."""
    if isinstance(generator, torch.Generator):
        return [generator] * len(images)
    return generator
