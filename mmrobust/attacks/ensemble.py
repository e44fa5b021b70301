"""A fixed, ordered set of attacks on a detector, of which the worst counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..registry import ATTACKS
from .base import EOT, Attack, Generators, Option, Oracle, Preset

# Of the first ensemble, in the order of what they take from five small detectors of
# four families beyond what those before them took.
_FIRST = ('total', 'mislabel', 'cls', 'dag', 'vanish', 'reg')


def _apgd(**steps: int) -> dict[str, dict[str, Any]]:
    search = {'type': 'mmrobust.APGD'}
    return {
        f'apgd-{name}': {**search, 'num_steps': count, 'objective': name}
        for name, count in steps.items()
    }


_SQUARE = {'square': {'type': 'mmrobust.Square', 'num_queries': 200}}

# What a name stands for never changes, so that figures can be compared; those without
# a number are the newest. experiments/ensemble has the figures that chose the members.
VERSIONS: dict[str, dict[str, dict[str, Any]]] = {
    'standard-2': {
        **_apgd(ranking=40, total=20, mislabel=20, vanish=20, cls=20),
        **_SQUARE,
    },
    'fast-2': _apgd(ranking=20, total=10, vanish=10),
    'standard-1': {
        **_apgd(**dict.fromkeys(_FIRST, 20)),
        **_SQUARE,
    },
    'fast-1': _apgd(**dict.fromkeys(_FIRST, 10)),
}
NEWEST = {'standard': 'standard-2', 'fast': 'fast-2'}


@ATTACKS.register_module()
class Ensemble(Attack):
    """What AutoAttack (arXiv 2003.01690) is for classifiers, for detectors.

    Members run in their order on every image, until nothing of it is detected any
    more: until its score (:func:`mmrobust.analysis.image_score`) is 0. Then, over all
    images, the combination of members' examples (and the clean image) with the lowest
    mAP is searched greedily (:func:`mmrobust.analysis.worst_case_map`); it is never
    above the mAP of any member, where a member that did not run on an image has the
    example that left nothing of it. The evaluation loop does all this.

    The members of a version are fixed so that figures can be compared;
    :data:`VERSIONS` lists them.

    Args:
        norm, eps: see :class:`Attack`.
        version: ``'standard'``, or ``'fast'`` for a first look: the newest of their
            kind; an older one by its number, ``'standard-1'``.
        members: other members, name to attack config without norm and eps; the
            version is then ``'custom'`` in the report.
        eot: of every member, see :class:`Attack`.

    Raises:
        ConfigError: for an unknown version, or members that are none.
    """

    search = 'several attacks, of which the worst counts'
    options = {
        **Attack.options,
        'version': Option(
            'version', 'of ensemble', choices=(*NEWEST, 'standard-1', 'fast-1')
        ),
        'eot': EOT,
    }
    presets = {
        'ensemble': Preset(
            'every member its own objective, and the worst mAP over all images counts',
            'after AutoAttack, [2003.01690](https://arxiv.org/abs/2003.01690)',
        )
    }

    members: dict[str, Attack]

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        version: str = 'standard',
        members: Mapping[str, Mapping[str, Any]] | None = None,
        eot: int = 1,
    ) -> None:
        super().__init__(norm, eps, eot=eot)
        version = NEWEST.get(version, version)
        if members is None and version not in VERSIONS:
            raise ConfigError(
                f'version {version!r} of the ensemble is unknown: choose from '
                f'{", ".join((*NEWEST, *VERSIONS))}.'
            )
        self.version = version if members is None else 'custom'
        chosen = VERSIONS[version] if members is None else members
        if not chosen:
            raise ConfigError('the ensemble has no members: give at least one.')
        self.members = {
            name: _build(name, {**member, 'norm': norm, 'eps': eps}, self.eot)
            for name, member in chosen.items()
        }

    def perturb(
        self, oracle: Oracle, images: Sequence[Tensor], generator: Generators
    ) -> list[Tensor]:
        """Refuses, since an ensemble is no attack on one loss: its members are."""
        raise ConfigError(
            "an ensemble is an attack of a test loop, AttackTestLoop's for instance, "
            'and of nothing else: take one of its members.'
        )

    def leave_out(self, name: str, reason: str) -> None:
        """Goes without a member that the model has no losses for, except the last."""
        if len(self.members) == 1:
            raise ConfigError(f'no member of the ensemble works: {reason}')
        del self.members[name]

    def trust_gradients(self) -> None:
        """Goes without members that use none, which find nothing where they are sound.

        The first version, and members that somebody has chosen, stay as they are.
        """
        if self.version in NEWEST.values():
            searches = self.members.items()
            self.members = {k: each for k, each in searches if each.asks != 'values'}

    def describe(self) -> dict[str, Any]:
        """The settings that define the ensemble, for the report."""
        return {
            **super().describe(),
            'num_steps': sum(m.describe()['num_steps'] for m in self.members.values()),
            'objective': self.version,
            'version': self.version,
            'members': list(self.members),
            'eot': self.eot,
        }


def _build(name: str, config: dict[str, Any], eot: int) -> Attack:
    if name == 'benign':
        raise ConfigError("no member of an ensemble can be called 'benign': rename it.")
    customary: Mapping[str, Any] = {}
    kind = ATTACKS.get(str(config.get('type')))
    if isinstance(kind, type) and issubclass(kind, Attack):
        customary = kind.customary.get(config['norm'], {})
    member = ATTACKS.build({**customary, **config}) if 'type' in config else None
    if not isinstance(member, Attack) or member.members is not None:
        raise ConfigError(
            f'the member {name!r} of the ensemble is no attack: give it the type of '
            "one, like 'mmrobust.APGD'."
        )
    member.eot = max(member.eot, eot)
    return member
