"""Evaluates a detector's robustness on its own test data with one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from ..attacks import CORRUPTION_SETS, attack_preset, corrupted, takes
from ..corruptions import NAMES, SEVERITIES
from ..errors import ConfigError, doing
from ..utils.configs import read_config
from ..utils.models import bare_model
from ..utils.runner import build_runner
from ..weights import check_checkpoint, read_checkpoint
from .report import Report, load


def evaluate(
    model: str | os.PathLike | Config | nn.Module,
    checkpoint: str | os.PathLike | None = None,
    attacks: str | Sequence[str] | Mapping[str, Any] = ('noise', 'pgd'),
    num_images: int | None = None,
    *,
    severity: Sequence[int] = SEVERITIES,
    work_dir: str | os.PathLike = 'work_dirs/evaluate',
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Measures a detector on its test data, without attack and under each attack.

    The same as ``tools/test.py CONFIG CHECKPOINT --attack ...``: the report of both is
    the same, and an evaluation that was interrupted goes on with the same call.

    >>> import mmrobust
    >>> report = mmrobust.evaluate(
    ...     config, checkpoint, attacks=['noise', 'pgd'], num_images=2, eps=4,
    ...     num_steps=2, work_dir=work_dir)
    >>> sorted(report.attacks)
    ['noise', 'pgd']

    Args:
        model: a config (its path or a ``Config``), or a detector of
            ``mmdet.apis.init_detector``, with its weights as they are.
        checkpoint: file or address of the weights; none for a detector.
        attacks: names that the command line knows, of corruptions too, or configs of
            attacks by name, like ``dict(pgd=dict(type='mmrobust.PGD', eps=4))``.
        num_images: evaluate on a fixed choice of so many images.
        severity: of corruptions that are named, each from 1 to 5.
        work_dir: folder of the report and its records.
        settings: of the test loop, see :class:`mmrobust.evaluation.AttackTestLoop`,
            like ``dict(seed=1, space='original', attack_batch_size=8)``.
        **options: of named attacks: ``norm``, ``eps`` in pixel units of 0-255,
            ``num_steps`` and so on, for those that have them.

    Raises:
        ConfigError: for a config, checkpoint, attack or data that cannot work.
    """
    built, cfg = _config(model, checkpoint)
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(key) is None:
            raise ConfigError(f'the config has no {key} to evaluate with.')
    if isinstance(attacks, str):
        attacks = [attacks]
    if not isinstance(attacks, Mapping):
        chosen = [name for name in attacks if name in CORRUPTION_SETS or name in NAMES]
        names = [name for name in attacks if name not in chosen]
        for key in options:
            if not any(takes(name, key) for name in names):
                raise ConfigError(f'{key} is no setting of {" or ".join(attacks)}.')
        attacks = {name: attack_preset(name, **options) for name in names}
        attacks |= {label: each for label, _, each in corrupted(chosen, severity)}
    elif options:
        raise ConfigError(
            f'{", ".join(options)} belong to attacks that are named: put them into the '
            'configs of the attacks.'
        )
    if not attacks:
        raise ConfigError("attacks is empty: name at least one, like attacks=['pgd'].")
    cfg.work_dir = os.fspath(work_dir)
    report = Path(work_dir) / 'robustness.json'
    cfg.test_cfg = ConfigDict(
        type='mmrobust.AttackTestLoop',
        attacks=attacks,
        num_images=num_images,
        report=str(report),
        **(settings or {}),
    )
    cfg.load_from = None if checkpoint is None else os.fspath(checkpoint)
    runner = build_runner(cfg)
    if built is None:
        check_checkpoint(cfg.load_from, bare_model(runner.model))
    else:
        runner.model = built
    with doing('evaluating'):
        runner.test()
    return load(report)


def _config(model: Any, checkpoint: Any) -> tuple[nn.Module | None, Config]:
    """Returns the detector, if one is given, and a config of our own."""
    if isinstance(model, nn.Module):
        bare: Any = bare_model(model)
        if checkpoint is not None:
            raise ConfigError(
                'a detector has its weights already: leave the checkpoint out, or '
                'give a config.'
            )
        if getattr(bare, 'cfg', None) is None:
            raise ConfigError(
                'the detector has no cfg, which has its test data: build it with '
                'mmdet.apis.init_detector, or give a config and a checkpoint.'
            )
        return bare, deepcopy(bare.cfg)
    if checkpoint is None:
        raise ConfigError('give the checkpoint whose robustness is to be measured.')
    read_checkpoint(os.fspath(checkpoint))
    if isinstance(model, Config):
        return None, deepcopy(model)
    return None, read_config(os.fspath(model))
