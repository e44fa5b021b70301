"""A fixed, ordered set of attacks on a detector, of which the worst counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..registry import ATTACKS
from ..threat import ThreatModel, to_pixels
from .apgd import LARGER_RADII
from .base import Attack

_APGD = 'mmrobust.APGD'

# In the order of what they take from five small detectors of four families beyond what
# those before them took; experiments/ensemble has the figures. Many objectives with few
# steps find more than few with many.
_OBJECTIVES = ('total', 'mislabel', 'cls', 'dag', 'vanish', 'reg')


def _apgd(num_steps: int) -> dict[str, dict[str, Any]]:
    return {
        f'apgd-{objective}': {
            'type': _APGD,
            'objective': objective,
            'num_steps': num_steps,
        }
        for objective in _OBJECTIVES
    }


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
class Ensemble:
    """What AutoAttack (arXiv 2003.01690) is for classifiers, for detectors.

    Members run in their order on every image, until nothing of it is detected any
    more: until its score (:func:`mmrobust.analysis.image_score`) is 0. Then, over all
    images, the combination of members' examples (and the clean image) with the lowest
    mAP is searched greedily, as mAP does not split into images
    (:func:`mmrobust.analysis.worst_case_map`); it is never above the mAP of any
    member, where a member that did not run on an image has the example that left
    nothing of it. The evaluation loop does all this, see
    :class:`mmrobust.evaluation.AttackTestLoop`: an ensemble is no attack on one loss.

    There is nothing to tune. The members are fixed so that figures can be compared;
    :data:`VERSIONS` lists them.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255, or text like ``'4/255'``.
        version: ``'standard'``, or ``'fast'`` for a first look.
        members: other members, name to attack config without norm and eps; the
            version is then ``'custom'`` in the report.

    Attributes:
        members: the attacks by name, in their order.
        version: its name.

    Raises:
        ConfigError: for an unknown version, or members that are none.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        version: str = 'standard',
        members: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.threat = ThreatModel(norm=norm, eps=to_pixels(eps, norm=norm))
        if members is None and version not in VERSIONS:
            raise ConfigError(
                f'version {version!r} of the ensemble is unknown: choose from '
                f'{", ".join(VERSIONS)}.'
            )
        self.version = version if members is None else 'custom'
        chosen = VERSIONS[version] if members is None else members
        if not chosen:
            raise ConfigError('the ensemble has no members: give at least one.')
        self.members: dict[str, Attack] = {}
        for name, member in chosen.items():
            config = {**member, 'norm': norm, 'eps': eps}
            if norm == 'l1' and config.get('type') == _APGD:
                config.setdefault('radius_schedule', LARGER_RADII)
            self.members[name] = _build(name, config)

    def leave_out(self, name: str, reason: str) -> None:
        """Goes without a member that the model has no losses for.

        Raises:
            ConfigError: if it was the last one.
        """
        if len(self.members) == 1:
            raise ConfigError(f'no member of the ensemble works: {reason}')
        del self.members[name]

    def describe(self) -> dict[str, Any]:
        """The settings that define the ensemble, for the report."""
        return {
            'norm': self.threat.norm,
            'eps': self.threat.eps,
            'step_size': None,
            'num_steps': sum(m.describe()['num_steps'] for m in self.members.values()),
            'objective': self.version,
            'restarts': 1,
            'gradient_free': False,
            'version': self.version,
            'members': list(self.members),
        }


def _build(name: str, config: dict[str, Any]) -> Attack:
    if name == 'benign':
        raise ConfigError("no member of an ensemble can be called 'benign': rename it.")
    member = ATTACKS.build(config) if 'type' in config else None
    if not isinstance(member, Attack):
        raise ConfigError(
            f'the member {name!r} of the ensemble is no attack: give it the type of '
            "one, like 'mmrobust.APGD'."
        )
    return member
