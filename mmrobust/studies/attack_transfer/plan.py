"""What a transfer matrix consists of, as the user says it."""

from __future__ import annotations

import copy
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ...errors import ConfigError
from ...registry import ATTACKS
from ...utils.files import file_sha256
from ..backbone_transfer.sweep import settings_of

_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')
_PAIR = re.compile(r'(.+?\.(?:py|json|ya?ml)):(.+)')
# What a config's test loop says about the detector and not about its attacks.
_KEPT = ('fp16', 'gt_frame')
_NEEDED = ('test_dataloader', 'test_evaluator', 'test_cfg')


@dataclass
class Detector:
    """A trained detector.

    Attributes:
        name: what the table calls it.
        config: path of its config.
        checkpoint: file or URL of its weights.
        cfg: the config.
    """

    name: str
    config: str
    checkpoint: str
    cfg: Config

    def __post_init__(self) -> None:
        for key in _NEEDED:
            if self.cfg.get(key) is None:
                raise ConfigError(f'config {self.config!r} has no {key} to test with.')
        if self.cfg.get('default_scope') in ('mmpretrain', 'mmcls'):
            raise ConfigError(
                f'config {self.config!r} is of a classifier: a transfer matrix is of '
                'detectors.'
            )

    @cached_property
    def sha256(self) -> str | None:
        """Hash of the checkpoint; a URL has none."""
        return file_sha256(self.checkpoint)

    def test_config(self, folder: Path, loop: Mapping[str, Any]) -> Config:
        """The config with another test loop.

        Args:
            folder: its work dir.
            loop: settings of the loop.
        """
        cfg = copy.deepcopy(self.cfg)
        cfg.test_cfg = ConfigDict(**{**self._kept(), **loop})
        cfg.work_dir, cfg.load_from, cfg.resume = str(folder), self.checkpoint, False
        # A name of its own: runners of one name share loggers, hubs and visualizers.
        cfg.experiment_name = f'{self.name}_{os.getpid()}_{time.time_ns()}'
        if cfg.get('visualizer'):
            cfg.visualizer.name = cfg.experiment_name
        return cfg

    def settings(self) -> dict[str, Any]:
        """What of the detector decides about its adversarial images, by dotted name."""
        flat = {
            name: value
            for name, value in settings_of(self.cfg).items()
            if re.match(r'(model|data_preprocessor|test_dataloader)\b', name)
        }
        kept = {f'test_cfg.{key}': value for key, value in self._kept().items()}
        return {**flat, **kept, 'checkpoint': self.sha256 or self.checkpoint}

    def resizing(self) -> str:
        """What makes the sizes of its network's input, padding left out."""
        pipeline = self.cfg.test_dataloader.dataset.get('pipeline') or []
        kept = [t for t in pipeline if 'Resize' in str(t.get('type'))]
        return json.dumps(kept, sort_keys=True, default=str)

    def _kept(self) -> dict[str, Any]:
        loop = self.cfg.test_cfg
        return {key: loop[key] for key in _KEPT if key in loop}


@dataclass
class Plan:
    """A transfer matrix.

    Attributes:
        sources: detectors whose gradients make the images.
        targets: detectors that are shown the images.
        attack: name of the attack.
        preset: its config.
        work_dir: folder of images, logs and results.
        seed: of the attack, and of the choice of images.
        num_images: evaluate on so many images; None for all.
        metric: key of the figure, by default the most usual one.
    """

    sources: list[Detector]
    targets: list[Detector]
    attack: str
    preset: dict[str, Any]
    work_dir: Path
    seed: int = 0
    num_images: int | None = None
    metric: str | None = None
    command: list[str] = field(default_factory=list)

    @cached_property
    def attack_settings(self) -> dict[str, Any]:
        """The attack's settings, however they were written."""
        described = ATTACKS.build(self.preset).describe()
        return {**self.preset, 'name': self.attack, **described}

    @property
    def detectors(self) -> list[Detector]:
        """Each once."""
        names = {each.name for each in self.sources}
        return self.sources + [d for d in self.targets if d.name not in names]


def parse_detectors(items: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Reads ``NAME=CONFIG:CHECKPOINT``.

    Returns:
        Paths of config and checkpoint by name.

    Raises:
        ConfigError: for anything else, or a name given twice.
    """
    found: dict[str, tuple[str, str]] = {}
    for item in items:
        name, _, rest = item.partition('=')
        pair = _PAIR.fullmatch(rest)
        if not pair:
            raise ConfigError(
                f'{item!r} must be NAME=CONFIG:CHECKPOINT, for instance '
                'fcos=configs/fcos.py:fcos.pth.'
            )
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f'{item!r}: the name {name!r} must be of letters, digits, dots, dashes '
                'and underscores, as it is the name of a folder.'
            )
        if name in found:
            raise ConfigError(f'the name {name!r} is given to two detectors.')
        found[name] = pair[1], pair[2]
    return found


def choose(option: str, names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The names that an option gives, all by default.

    Raises:
        ConfigError: for an unknown name, or one given twice.
    """
    for name in names or ():
        if name not in known:
            raise ConfigError(
                f'{option} {name!r} is none of the detectors: choose from '
                f'{", ".join(known)}.'
            )
        if list(names or ()).count(name) > 1:
            raise ConfigError(f'{option} has {name!r} twice.')
    return list(names or known)
