"""A fixed, ordered set of attacks on a detector, of which the worst counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..registry import ATTACKS
from .base import Attack, Generators, Option, Oracle, Preset

# In the order of what they take from five small detectors of four families beyond what
# those before them took; experiments/ensemble has the figures. Many objectives with few
# steps find more than few with many.
_OBJECTIVES = ('total', 'mislabel', 'cls', 'dag', 'vanish', 'reg')


def _apgd(num_steps: int) -> dict[str, dict[str, Any]]:
    search = {'type': 'mmrobust.APGD', 'num_steps': num_steps}
    return {f'apgd-{name}': {**search, 'objective': name} for name in _OBJECTIVES}


VERSIONS: dict[str, dict[str, dict[str, Any]]] = {
    'standard': {
        **_apgd(20),
        # Finds nothing more where gradients are sound; it is there for where they
        # are not.
        'square': {'type': 'mmrobust.Square', 'num_queries': 200},
    },
    'fast': _apgd(10),
}


@ATTACKS.register_module()
class Ensemble(Attack):
    """What AutoAttack (arXiv 2003.01690) is for classifiers, for detectors.

    Members run in their order on every image, until nothing of it is detected any
    more: until its score (:func:`mmrobust.analysis.image_score`) is 0. Then, over all
    images, the combination of members' examples (and the clean image) with the lowest
    mAP is searched greedily (:func:`mmrobust.analysis.worst_case_map`); it is never
    above the mAP of any member, where a member that did not run on an image has the
    example that left nothing of it. The evaluation loop does all this.

    The members are fixed so that figures can be compared; :data:`VERSIONS` lists them.

    Args:
        norm, eps: see :class:`Attack`.
        version: ``'standard'``, or ``'fast'`` for a first look.
        members: other members, name to attack config without norm and eps; the
            version is then ``'custom'`` in the report.

    Raises:
        ConfigError: for an unknown version, or members that are none.
    """

    search = 'several attacks, of which the worst counts'
    options = {
        **Attack.options,
        'version': Option('version', 'of ensemble', choices=tuple(VERSIONS)),
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
    ) -> None:
        super().__init__(norm, eps)
        if members is None and version not in VERSIONS:
            raise ConfigError(
                f'version {version!r} of the ensemble is unknown: choose from '
                f'{", ".join(VERSIONS)}.'
            )
        self.version = version if members is None else 'custom'
        chosen = VERSIONS[version] if members is None else members
        if not chosen:
            raise ConfigError('the ensemble has no members: give at least one.')
        self.members = {
            name: _build(name, {**member, 'norm': norm, 'eps': eps})
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

    def describe(self) -> dict[str, Any]:
        """The settings that define the ensemble, for the report."""
        return {
            **super().describe(),
            'num_steps': sum(m.describe()['num_steps'] for m in self.members.values()),
            'objective': self.version,
            'version': self.version,
            'members': list(self.members),
        }


def _build(name: str, config: dict[str, Any]) -> Attack:
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
    return member
