"""The settings of an AutoAttack evaluation: norm balls, and the attacks run in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..utils.validation import positive_int, to_pixels

PACKAGE_NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}

# 4/255, 2 and 75 in [0, 1] terms: the radii of arXiv 2303.01870 on ImageNet.
DEFAULT_EPS = {'linf': 4.0, 'l2': 510.0, 'l1': 19125.0}

# What float32 sums over an image's pixels may be off by, relative to the radius.
_TOLERANCE = 1e-4

# As pyautoattack 0.2.0 composes them (arXiv 2003.01690, section 6).
VERSIONS: dict[str, tuple[str, ...]] = {
    'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
    'plus': ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t'),
    'rand': ('apgd-ce', 'apgd-dlr'),
    'custom': (),
}

_APGD = ('n_iter', 'n_restarts', 'eot_iter', 'use_largereps')
# The settings of the package's attack objects that may be changed.
SETTINGS: dict[str, tuple[str, ...]] = {
    'apgd-ce': _APGD,
    'apgd-dlr': _APGD,
    'apgd-t': (*_APGD, 'n_target_classes'),
    'fab': ('n_iter', 'n_restarts'),
    'fab-t': ('n_iter', 'n_restarts', 'n_target_classes'),
    'square': ('n_queries', 'n_restarts'),
}

# The differences of logits that the DLR losses divide by need so many classes
# (arXiv 2003.01690, equations 6 and 7).
_CLASSES_NEEDED = {'apgd-dlr': 3, 'apgd-t': 4}


@dataclass(frozen=True)
class Ball:
    """A norm ball of one radius, cut off at the range of valid pixels.

    Args:
        norm: ``'linf'``, ``'l2'`` or ``'l1'``, over all C x H x W values of an image.
        eps: radius in pixel units of 0-255.
    """

    norm: str
    eps: float

    @classmethod
    def read(cls, norm: Any, eps: float | str | None = None) -> Ball:
        """Reads a norm, and a radius in pixel units or text like ``'4/255'``.

        Raises:
            ConfigError: for an unknown norm, or a radius that is no positive size.
        """
        if norm not in PACKAGE_NORMS:
            raise ConfigError(
                f'norm={norm!r} is unknown: choose from {", ".join(PACKAGE_NORMS)}.'
            )
        radius = DEFAULT_EPS[norm] if eps is None else to_pixels(eps, norm=norm)
        if radius == 0:
            raise ConfigError('eps=0 leaves AutoAttack nothing to do: give a radius.')
        return cls(norm, radius)

    @property
    def name(self) -> str:
        """A short and unique name, fit for a file: ``'linf-4'``."""
        return f'{self.norm}-{self.eps:.10g}'

    @property
    def label(self) -> str:
        """The name in tables, in both units: ``'linf 4 (4/255)'``, ``'l2 510 (2)'``."""
        small = f'{self.eps:g}/255' if self.norm == 'linf' else f'{self.unit_eps:g}'
        return f'{self.norm} {self.eps:g} ({small})'

    @property
    def unit_eps(self) -> float:
        """The radius for images in [0, 1]."""
        return self.eps / 255

    def distances(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Measures the perturbations, float64 (N,) in the units of the images."""
        delta = (adversarial.double() - clean.double()).flatten(1).abs()
        if self.norm == 'linf':
            return delta.amax(dim=1)
        return delta.norm(dim=1) if self.norm == 'l2' else delta.sum(dim=1)

    def contains(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Says of each image (N, C, H, W) in [0, 1] if it is an allowed one, bool (N,).

        NaN is not. Rounding in float32 is forgiven.
        """
        radius = self.unit_eps * (1 + _TOLERANCE) + 1e-7
        inside = self.distances(clean, adversarial) <= radius
        flat = adversarial.flatten(1)
        return inside & (flat >= 0).all(dim=1) & (flat <= 1).all(dim=1)


def read_balls(threats: Sequence[dict[str, Any]] | None) -> list[Ball]:
    """Reads the setting ``threats`` of the loop; linf with radius 4 by default.

    Raises:
        ConfigError: if it is empty, names one twice or has unknown keys.
    """
    balls = []
    for threat in [{'norm': 'linf'}] if threats is None else threats:
        if not isinstance(threat, dict) or set(threat) | {'eps'} != {'norm', 'eps'}:
            raise ConfigError(
                f"threats holds {threat!r}: write dict(norm='linf', eps=4)."
            )
        balls.append(Ball.read(threat['norm'], threat.get('eps')))
    if not balls:
        raise ConfigError("threats is empty: write [dict(norm='linf', eps=4)].")
    if len(set(balls)) < len(balls):
        raise ConfigError('threats names one norm with the same eps twice.')
    return balls


@dataclass(frozen=True)
class Member:
    """One attack and what it changes of the package's settings."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def read(cls, value: Any) -> Member:
        """Reads a member.

        Args:
            value: a name, a dict with ``type`` and settings, or text like
                ``'apgd-t:n_iter=20,n_target_classes=3'``.

        Raises:
            ConfigError: for unknown names and settings.
        """
        if isinstance(value, dict):
            settings = dict(value)
            name = settings.pop('type', None)
        else:
            name, _, rest = str(value).partition(':')
            settings = {}
            for pair in filter(None, rest.split(',')):
                key, _, number = pair.partition('=')
                number = number.strip()
                settings[key.strip()] = int(number) if number.isdigit() else number
        if name not in SETTINGS:
            raise ConfigError(
                f'AutoAttack has no member {name!r}: choose from {", ".join(SETTINGS)}.'
            )
        for key, given in settings.items():
            if key not in SETTINGS[name]:
                raise ConfigError(
                    f'{name} has no setting {key!r}: it has '
                    f'{", ".join(SETTINGS[name])}.'
                )
            if key == 'use_largereps':
                settings[key] = given in (True, 1, 'True', 'true', '1')
            else:
                settings[key] = positive_int(given, f'{key} of {name}')
        return cls(name, tuple(sorted(settings.items())))

    def as_text(self) -> str:
        """Writes what :meth:`read` reads."""
        text = ','.join(f'{key}={value}' for key, value in self.settings)
        return f'{self.name}:{text}' if text else self.name


@dataclass(frozen=True)
class Ensemble:
    """An AutoAttack version, or the user's own choice of members.

    Args:
        version: ``'standard'``, ``'plus'``, ``'rand'`` or ``'custom'``.
        members: in the order in which they run.
    """

    version: str
    members: tuple[Member, ...]

    @classmethod
    def read(cls, version: str | None, attacks: Sequence[Any] | None) -> Ensemble:
        """Reads the settings ``version`` and ``attacks`` of the loop.

        Raises:
            ConfigError: if they contradict each other or do not exist.
        """
        if version is None:
            version = 'standard' if attacks is None else 'custom'
        if version not in VERSIONS:
            raise ConfigError(
                f'AutoAttack has no version {version!r}: choose from '
                f'{", ".join(VERSIONS)}.'
            )
        if version == 'custom':
            if not attacks:
                raise ConfigError(
                    'the custom version of AutoAttack needs its members: name some of '
                    f'{", ".join(SETTINGS)}.'
                )
            members = tuple(Member.read(value) for value in attacks)
        elif attacks is not None:
            raise ConfigError(
                f'the {version} version of AutoAttack has its own members: leave them '
                "out, or choose version 'custom'."
            )
        else:
            members = tuple(Member(name) for name in VERSIONS[version])
        names = [member.name for member in members]
        if len(set(names)) < len(names):
            raise ConfigError(f'AutoAttack names a member twice: {", ".join(names)}.')
        return cls(version, members)

    def fit(
        self, num_classes: int, norm: str, size: tuple[int, int]
    ) -> tuple[tuple[Member, ...], list[str]]:
        """Chooses the members that can work on a model.

        Few classes are a property of the task, so the fixed versions then go without
        the members that cannot work and say so. Whoever names such a member, or sizes
        of images that Square cannot take, is asked to choose instead.

        Args:
            num_classes: classes of the model.
            norm: norm of the ball.
            size: height and width of the images.

        Returns:
            The members that run, and sentences about what was changed.

        Raises:
            ConfigError: if a member named by the user, or any, cannot work.
        """
        if num_classes < 2:
            raise ConfigError(
                f'the model has {num_classes} class: AutoAttack needs at least 2.'
            )
        names = [member.name for member in self.members]
        if 'square' in names and norm != 'linf' and not _square_fits(*size):
            others = ' '.join(name for name in names if name != 'square')
            raise ConfigError(
                f'Square cannot tile images of {size[0]} x {size[1]} for {norm}: '
                'choose another resolution, or leave it out with the custom version '
                f'and the members {others or "apgd-ce"}.'
            )
        members: list[Member] = []
        notes: list[str] = []
        for member in self.members:
            needed = _CLASSES_NEEDED.get(member.name, 2)
            if num_classes >= needed:
                members.append(member)
                continue
            if self.version == 'custom':
                raise ConfigError(
                    f'{member.name} needs {needed} classes and the model has '
                    f'{num_classes}: leave it out; apgd-ce, fab-t and square work.'
                )
            note = f'{member.name} needs {needed} classes and is left out'
            if member.name == 'apgd-t' and num_classes == 3 and 'apgd-dlr' not in names:
                members.append(Member('apgd-dlr'))
                note += '; apgd-dlr runs in its place'
            notes.append(
                f'{note}: with {num_classes} classes this is not the whole '
                f'{self.version} version'
            )
        return tuple(members), notes


def _square_fits(height: int, width: int) -> bool:
    """Says if Square's first tiling (l2, l1) stays inside the image.

    It lays squares of a fifth of the height, as many as fit into a side, but begins
    after a margin, so that for some sides the last one does not fit. One of a single
    pixel may lie outside.
    """
    side = height // 5
    if side < 2:
        return side == 1
    margin = (height - 5 * side) // 2
    return all(margin + length // side * side <= length for length in (height, width))
