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
_SQUARE = 'mmrobust.Square'

# In their order: what breaks most images for its cost comes first, since later members
# only work on what is left.
VERSIONS: dict[str, dict[str, dict[str, Any]]] = {
    'standard': {
        'apgd-total': {'type': _APGD, 'objective': 'total', 'num_steps': 50},
        'apgd-cls': {'type': _APGD, 'objective': 'cls', 'num_steps': 50},
        'apgd-mislabel': {'type': _APGD, 'objective': 'mislabel', 'num_steps': 50},
        'apgd-reg': {'type': _APGD, 'objective': 'reg', 'num_steps': 50},
        'apgd-vanish': {'type': _APGD, 'objective': 'vanish', 'num_steps': 50},
        'square': {'type': _SQUARE, 'num_queries': 1000},
    },
    'fast': {
        'apgd-total': {'type': _APGD, 'objective': 'total', 'num_steps': 20},
        'apgd-cls': {'type': _APGD, 'objective': 'cls', 'num_steps': 20},
        'apgd-mislabel': {'type': _APGD, 'objective': 'mislabel', 'num_steps': 20},
    },
}


@ATTACKS.register_module()
class Ensemble:
    """What AutoAttack (arXiv 2003.01690) is for classifiers, for detectors.

    Members run in their order on every image, until the image is broken: until its
    score (:func:`mmrobust.analysis.image_score`) is at most a tenth of the score
    without attack. Then, over all images, the combination of members' examples (and
    the clean image) with the lowest mAP is searched greedily, as mAP does not split
    into images (:func:`mmrobust.analysis.worst_case_map`); it is never above the mAP
    of any member, where a member that did not run on a broken image has the example
    that broke it. The evaluation loop does all this, see
    :class:`mmrobust.engine.AttackTestLoop`: an ensemble is no attack on one loss.

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

    def describe(self) -> dict[str, Any]:
        """The settings that define the ensemble, for the report."""
        return {
            'norm': self.threat.norm,
            'eps': self.threat.eps,
            'step_size': None,
            'num_steps': sum(m.describe()['num_steps'] for m in self.members.values()),
            'objective': self.version,
            'restarts': 1,
            'version': self.version,
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
