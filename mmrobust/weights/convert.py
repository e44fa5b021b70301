"""One file that OpenMMLab's tools load, from a file of any known source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..utils.files import replacing
from .architectures import recognise
from .families import QUICK_GELU, Architecture
from .renaming import rename
from .sources import META, Weights, activation_of, read_weights


@dataclass
class Converted:
    """Weights under mmpretrain's names, and all that is known of them."""

    weights: Weights
    architecture: Architecture
    state: dict[str, Tensor]

    def save(self, path: str) -> None:
        """Writes a checkpoint, whole or not at all.

        ``state_dict`` has ``backbone.*`` and, of classifiers, ``head.*``.

        Raises:
            ConfigError: if it cannot be written.
        """
        known = self.weights.normalization
        note = {
            'source': self.weights.source,
            'architecture': self.architecture.name,
            'backbone': self.architecture.backbone,
            'normalization': known.settings('rgb') if known else None,
        }
        content = {'state_dict': self.state, 'meta': {META: note}}
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                torch.save(content, temporary)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f'{path!r} cannot be written ({error}): give another place.'
            ) from error

    def snippets(self, path: str) -> dict[str, str]:
        """Writes settings to paste, for a detector and for a classifier.

        Args:
            path: the file they load.
        """
        known, found = self.weights.normalization, self.architecture
        init = {'type': 'mmrobust.PretrainedBackbone', 'checkpoint': path}
        fresh = {'fresh': list(found.fresh)} if found.fresh else {}
        detector = {
            'data_preprocessor': known.settings('bgr_to_rgb') if known else {},
            'backbone': {**found.detection, 'init_cfg': {**init, **fresh}},
        }
        classifier = found.classifier()
        preprocessor = {
            'num_classes': classifier['head']['num_classes'],
            **(known.settings('to_rgb') if known else {}),
        }
        hint = '# In a config with _base_, add _delete_=True to backbone.\n'
        if len(found.channels) == 1:
            stride = found.detection.get('patch_size', 16)
            if stride != found.backbone.get('patch_size', 16):
                hint += (
                    '# Its patches of 14 x 14 pixels are enlarged when it is loaded.\n'
                )
            hint += f'# Its one feature level, of stride {stride}, needs a neck: '
            hint += (
                "dict(type='mmrobust.SimpleFeaturePyramid', in_channels="
                f'{found.channels[0]}, out_channels=256, num_outs=5).\n'
                if stride == 16
                else 'mmrobust.SimpleFeaturePyramid is only for stride 16.\n'
            )
        return {
            'mmdet': hint + _text(model=detector),
            'mmpretrain': _text(
                model=classifier, load_from=path, data_preprocessor=preprocessor
            ),
        }


def convert(
    path: str,
    arch: str = 'auto',
    full: bool = False,
    trust: bool = False,
    normalization: Any = None,
    activation: str | None = None,
) -> Converted:
    """Reads a file of any known source and finds the config that builds its network.

    Args:
        path: file or URL.
        arch: name of the network it must be; ``'auto'`` takes any.
        full: refuse a file without a classifier's head.
        trust: run what code the file holds.
        normalization: see :func:`~.normalization.as_normalization`.
        activation: ``'quick_gelu'`` or ``'gelu'``, of a CLIP tower whose file does not
            tell it.

    Raises:
        ConfigError: if the file cannot be read, is of no known source or
            architecture, of another one than ``arch``, or does not tell the
            normalisation or activation while none is given; if an activation is given
            for something else than a CLIP tower.
    """
    weights = read_weights(path, trust, normalization)
    state = rename(weights)
    try:
        found = recognise(state)
    except ConfigError as error:
        raise ConfigError(f'{path!r} ({weights.source}): {error}') from error
    if arch not in ('auto', found.name):
        raise ConfigError(f'{path!r} is {found.name} and not {arch}.')
    if full and found.head is None:
        raise ConfigError(
            f'{path!r} has no head of a classifier (its backbone is {found.name}): '
            'leave out --full.'
        )
    if weights.normalization is None:
        raise ConfigError(
            f'{path!r} ({weights.source}) does not tell how its images are normalised, '
            'and nothing else does: give --normalization imagenet, unit, half or clip, '
            'as its publisher says.'
        )
    if 'pre_norm' in found.backbone:
        activation = activation or activation_of(weights)
        if activation is None:
            raise ConfigError(
                f'{path!r} is a tower of CLIP, whose weights do not show its '
                "activation: give --activation quick_gelu (OpenAI's, and what is "
                "trained on from it) or gelu (LAION's)."
            )
        if activation == 'quick_gelu':
            found = found.activated(QUICK_GELU)
    elif activation is not None:
        raise ConfigError(
            f'{path!r} is {found.name} and no tower of CLIP, which alone may have two '
            'activations: leave out --activation.'
        )
    return Converted(weights, found, {k: v.contiguous() for k, v in state.items()})


def _text(**settings: Any) -> str:
    return '\n'.join(f'{key} = {_value(value)}' for key, value in settings.items())


def _value(value: Any, indent: str = '') -> str:
    """Writes a setting as configs are written."""
    if not isinstance(value, dict):
        return repr(value)
    deeper = indent + '    '
    lines = [f'{deeper}{k}={_value(v, deeper)},' for k, v in value.items()]
    return '\n'.join(['dict(', *lines, f'{indent})'])
