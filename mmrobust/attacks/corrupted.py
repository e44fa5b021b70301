"""Corruptions as passes of an evaluation, alone or with an attack on top."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..corruptions import BENCHMARK, GROUPS, NAMES, SEVERITIES
from ..corruptions import Corruption as Picture
from ..errors import ConfigError
from ..patches import Place
from ..registry import ATTACKS
from .base import Attack, Generators, Oracle

#: What the command line calls sets of corruptions.
SETS = {
    'corruptions': BENCHMARK,
    **{f'{group}-corruptions': names for group, names in GROUPS.items()},
}


@ATTACKS.register_module()
class Corruption(Attack):
    """A corruption of the pictures, before the pipeline, and then perhaps an attack.

    The evaluation loop loads the images of the pass from corrupted pictures (see
    :mod:`mmrobust.corruptions`); the attack, if there is one, starts from these, and
    its ball is around these.

    Args:
        name: of the corruption, like ``'fog'``.
        severity: 1 (weak) to 5 (strong).
        attack: an attack or its config; none by default.

    Raises:
        ConfigError: for an unknown name or severity, without the package
            imagecorruptions-imaug, or for an attack that cannot be combined.
    """

    search = 'none: a corrupted picture'

    def __init__(
        self,
        name: str,
        severity: int,
        attack: Attack | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(eps=0)
        self.corruption = Picture(name, severity)
        inner: Any = attack
        if isinstance(attack, Mapping):
            inner = ATTACKS.build(dict(attack))
        self.inner: Attack | None = inner
        self.asks = 'nothing'
        if inner is None:
            return
        if not isinstance(inner, Attack) or inner.members or inner.corruption:
            raise ConfigError(
                f'attack={attack!r} cannot start from corrupted pictures: give the '
                'config of a single attack, and not of an ensemble or a corruption.'
            )
        self.threat, self.objective, self.eot = inner.threat, inner.objective, inner.eot
        self.search, self.baseline = inner.search, inner.baseline
        self.reads, self.asks = inner.reads, inner.asks
        self.transferable = inner.transferable  # type: ignore[misc]

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """See :meth:`Attack.perturb`; the images come corrupted."""
        if self.inner is None:
            return list(images)
        return self.inner.perturb(oracle, images, generator)

    def doubts(self, dataset: Any) -> list[str]:
        """See :meth:`Attack.doubts`."""
        return [] if self.inner is None else self.inner.doubts(dataset)

    def controls(self) -> dict[str, Attack]:
        """Returns the attack's controls, on the same pictures."""
        assert self.corruption is not None
        about = self.corruption.name, self.corruption.severity
        controls = {} if self.inner is None else self.inner.controls()
        return {name: Corruption(*about, each) for name, each in controls.items()}

    def patches(
        self, oracle: Oracle, images: Sequence[Tensor]
    ) -> list[list[Place]] | None:
        """See :meth:`Attack.patches`."""
        return None if self.inner is None else self.inner.patches(oracle, images)

    def describe(self) -> dict[str, Any]:
        """Returns the corruption, and the settings of the attack if there is one."""
        assert self.corruption is not None
        told = {'norm': None, 'eps': None, 'num_steps': None, 'objective': None}
        if self.inner is not None:
            told = self.inner.describe()
        return {
            **told,
            'corruption': self.corruption.name,
            'severity': self.corruption.severity,
        }


def corruption_names(names: Iterable[str]) -> list[str]:
    """Returns the corruptions that names and sets stand for, each once.

    Raises:
        ConfigError: for an unknown name.
    """
    found: list[str] = []
    for name in names:
        if name not in SETS and name not in NAMES:
            Picture(name, SEVERITIES[0])  # says what there is
        found += SETS.get(name, (name,))
    return list(dict.fromkeys(found))


def corrupted(
    names: Iterable[str],
    severities: Sequence[int],
    attacks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Yields corruptions, each alone and then with every one of some attacks.

    Args:
        names: corruptions or :data:`SETS` of them.
        severities: of each corruption.
        attacks: configs by name.

    Yields:
        A name, like ``fog`` or ``fog-severity3`` (of several severities) or
        ``pgd-fog-severity3``; the attack's name, or None; and the config.
    """
    for name in corruption_names(names):
        for severity in severities:
            label = f'{name}-severity{severity}' if len(severities) > 1 else name
            about = {'type': 'mmrobust.Corruption', 'name': name, 'severity': severity}
            yield label, None, about
            for each, attack in (attacks or {}).items():
                yield f'{each}-{label}', each, {**about, 'attack': dict(attack)}
