"""One file that OpenMMLab's tools load, from a file of any known source."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .architectures import Architecture, recognise
from .layouts import find_layout, to_mm
from .pretrained import in_backbone, unknown_layout, without_unknown
from .sources import META, TRUST_SWITCH, Weights, read_weights

# Of published files, where they are known.
_PUBLISHED = {
    '9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db': (
        'resnet50_linf_eps4.0.ckpt of madrylab/robust-imagenet-models'
    ),
    '0c725da1789c28168e5697c87b1adf7228527d07f7ad3b5b376271bb22da4ce3': (
        'convnext_tiny_cvst_robust.pt of revisiting-at'
    ),
    '1d2197912aeebb1eaa443df6c79d921470966026bb21529abbaf59bdaecc56a6': (
        'vit_s_cvst_robust.pt of revisiting-at'
    ),
    'ea83ada60aea2ac329d7de7eb00a3bed252b971c790207fb206b5dd2ed8162f8': (
        'convnext_b_cvst_robust.pt of revisiting-at'
    ),
}


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
            'normalization': known.as_meta() if known else None,
        }
        target = Path(path)
        content = {'state_dict': self.state, 'meta': {META: note}}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(
                dir=target.parent, prefix=f'.{target.name}.'
            )
        except OSError as error:
            raise ConfigError(
                f'{path!r} cannot be written ({error.strerror}): give another place.'
            ) from error
        try:
            with os.fdopen(handle, 'wb') as file:
                torch.save(content, file)
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, target)
        except BaseException as error:
            os.unlink(temporary)
            if isinstance(error, (OSError, RuntimeError)):
                raise ConfigError(f'{path!r} cannot be written ({error}).') from error
            raise

    def snippets(self, path: str) -> dict[str, str]:
        """Settings to paste: for a detector of mmdet and a classifier of mmpretrain.

        Args:
            path: the file they load.
        """
        known, found = self.weights.normalization, self.architecture
        init: dict[str, Any] = {
            'type': 'mmrobust.PretrainedBackbone',
            'checkpoint': path,
        }
        if found.fresh:
            init['fresh'] = list(found.fresh)
        detector = {
            'data_preprocessor': known.settings('bgr_to_rgb') if known else {},
            'backbone': {**found.detection, 'init_cfg': init},
        }
        classifier: dict[str, Any] = {
            'model': {**found.classifier(), 'type': 'ImageClassifier'},
            'load_from': path,
        }
        classifier['data_preprocessor'] = {
            'num_classes': classifier['model']['head']['num_classes'],
            **(known.settings('to_rgb') if known else {}),
        }
        hint = '# In a config with _base_, add _delete_=True to backbone.\n'
        if len(found.channels) == 1:
            stride = found.detection.get('patch_size', 16)
            hint += f'# Its one feature level, of stride {stride}, needs a neck: '
            hint += (
                "dict(type='mmrobust.SimpleFeaturePyramid', in_channels="
                f'{found.channels[0]}, out_channels=256, num_outs=5).\n'
                if stride == 16
                else 'mmrobust.SimpleFeaturePyramid is only for stride 16.\n'
            )
        return {
            'mmdet': hint + _text({'model': detector}),
            'mmpretrain': _text(classifier),
        }


def convert(
    path: str,
    arch: str = 'auto',
    full: bool = False,
    trust: bool = False,
    normalization: Any = None,
    switch: str = TRUST_SWITCH,
) -> Converted:
    """Reads a file of any known source and finds the config that builds its network.

    Args:
        path: file or URL.
        arch: name of the network it must be; ``'auto'`` takes any.
        full: refuse a file without a classifier's head.
        trust: run what code the file holds.
        normalization: see :func:`~.normalization.as_normalization`.
        switch: how the user can set ``trust``, for the message.

    Raises:
        ConfigError: if the file cannot be read, is of no known source or
            architecture, of another one than ``arch``, or does not tell the
            normalisation while none is given.
    """
    weights = read_weights(path, trust, normalization, switch)
    layout = find_layout(weights.tensors)
    if layout is None:
        raise ConfigError(unknown_layout(weights))
    if weights.meta:
        state = in_backbone(weights.tensors)
    else:
        state = without_unknown(weights, layout, *to_mm(layout, weights.tensors))
        weights.source += f', {layout.name}'
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
            'and nothing else does: give --normalization imagenet, unit or half, as '
            'its publisher says.'
        )
    return Converted(weights, found, {k: v.contiguous() for k, v in state.items()})


def sha256(path: str) -> str:
    """Hash of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def published_as(digest: str) -> str | None:
    """What a published file with this hash is called."""
    return _PUBLISHED.get(digest)


def _text(settings: dict[str, Any]) -> str:
    return '\n'.join(f'{key} = {_value(value)}' for key, value in settings.items())


def _value(value: Any, indent: str = '') -> str:
    """A setting as configs are written."""
    if not isinstance(value, dict):
        return repr(value)
    deeper = indent + '    '
    lines = [f'{deeper}{k}={_value(v, deeper)},' for k, v in value.items()]
    return '\n'.join(['dict(', *lines, f'{indent})'])
