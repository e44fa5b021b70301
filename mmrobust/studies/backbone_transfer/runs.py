"""One training of a study: its config, its start or resume, its result."""

from __future__ import annotations

import copy
import gc
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ...errors import ConfigError
from ...report import package_versions
from ...utils.files import finite, write_atomically
from ...utils.models import state_digest
from ...weights import read_checkpoint
from .plan import Run, Sweep

RESULT = 'result.json'


def with_backbone(cfg: Config, checkpoint: str) -> Config:
    """The target task on the backbone of a checkpoint.

    Other settings of an ``init_cfg`` of type PretrainedBackbone are kept.
    """
    cfg = copy.deepcopy(cfg)
    old = cfg.model.backbone.get('init_cfg')
    kept = {}
    if isinstance(old, Mapping) and str(old.get('type')).endswith('PretrainedBackbone'):
        kept = {key: value for key, value in old.items() if key != 'type'}
    cfg.model.backbone.init_cfg = {
        **kept,
        'type': 'mmrobust.PretrainedBackbone',
        'checkpoint': checkpoint,
    }
    return cfg


def loaded_digest(cfg: Config, model: Any) -> str:
    """SHA-256 of the backbone without what its ``init_cfg`` lets start anew."""
    fresh = cfg.model.backbone.init_cfg.get('fresh') or ()
    return state_digest(model.backbone, fresh)


def run_config(sweep: Sweep, run: Run) -> Config:
    """The config of one run, without where it resumes from."""
    cfg = with_backbone(sweep.cfg, sweep.checkpoints[run.eps])
    cfg.optim_wrapper.optimizer.lr = run.lr
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': run.seed}
    cfg.work_dir = str(sweep.folder(run))
    hooks = [{'type': 'mmrobust.SeedUpdatesHook'}]
    if run.mode == 'fixed':
        hooks.append({'type': 'mmrobust.FreezeBackboneHook'})
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), *hooks]
    defaults = cfg.get('default_hooks') or {}
    saving = defaults.get('checkpoint')
    saving = dict(saving or {'type': 'CheckpointHook', 'interval': 1})
    # The older one is deleted before the newer one is whole.
    saving.setdefault('max_keep_ckpts', 2)
    cfg.default_hooks = {**defaults, 'checkpoint': saving}
    return cfg


def run_one(sweep: Sweep, run: Run, metric: str, selection: str | None) -> dict:
    """Trains, evaluates and writes ``result.json``.

    Args:
        sweep: the study.
        run: which of its runs.
        metric: key of the figure.
        selection: key of the figure on the validation set by which the learning rate
            is chosen, or None if there is nothing to validate.

    Returns:
        What the file holds.

    Raises:
        ConfigError: if the evaluation does not give the figure.
    """
    folder = sweep.folder(run)
    cfg = run_config(sweep, run)
    resumed = latest_checkpoint(folder)
    if resumed is not None:
        cfg.resume, cfg.load_from = True, resumed
    # A name of its own: runners of one name share loggers, hubs and visualizers.
    name = f'{run.name.replace("/", "_")}_{os.getpid()}_{time.time_ns()}'
    cfg.experiment_name = name
    if cfg.get('visualizer'):
        cfg.visualizer.name = name
    started = time.monotonic()
    runner: Runner = (
        RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    )
    runner.train()
    validated = _plain(runner.val_loop.run()) if selection else {}
    tested = _plain(runner.test_loop.run())
    for key, metrics in ((metric, tested), (selection, validated)):
        if key is not None and key not in metrics:
            if not metrics:  # CocoMetric's answer to no detection at all
                raise ConfigError(
                    f'the model of {run.name} ({sweep.checkpoints[run.eps]!r}) detects '
                    f'nothing, so its evaluation gives no {key!r}: check checkpoint '
                    'and schedule.'
                )
            raise ConfigError(
                f'the evaluation gives no {key!r} but {", ".join(metrics)}: choose '
                'one of them with --metric.'
            )
    inner: Any = runner.model
    model = inner.module if is_model_wrapper(inner) else inner
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = {
        'eps': run.eps,
        'mode': run.mode,
        'lr': run.lr,
        'seed': run.seed,
        'value': tested[metric],
        'selected_by': validated[selection] if selection else tested[metric],
        'metrics': tested,
        'validation': validated,
        'updates': runner.iter,
        'trainable_parameters': trainable,
        'parameters': sum(p.numel() for p in model.parameters()),
        'backbone_sha256': loaded_digest(cfg, model),
        'resumed': resumed is not None,
        'seconds': round(time.monotonic() - started, 1),
        'versions': package_versions(),
    }
    result = finite(result)
    if is_main_process():
        write_atomically(folder / RESULT, json.dumps(result, indent=2) + '\n')
    for handler in list(runner.logger.handlers):
        handler.close()  # one log file per run stays open otherwise
        runner.logger.removeHandler(handler)
    del runner, model, inner
    if torch.cuda.is_available():
        gc.collect()  # a runner and its parts refer to each other
        torch.cuda.empty_cache()
    barrier()
    return result


def read_result(folder: Path) -> dict | None:
    """The result of a finished run.

    Raises:
        ConfigError: if the file is damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding='utf-8'))
        return {**result, 'value': result['value']}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{path} is damaged: remove it, and the run is evaluated again.'
        ) from error


def latest_checkpoint(folder: Path) -> str | None:
    """The last checkpoint of an interrupted run that is whole."""
    found = []
    for path in folder.glob('*.pth'):
        match = re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name)
        if match:
            found.append((int(match[1]), path))
    for _, path in sorted(found, reverse=True):
        try:
            read_checkpoint(str(path))
            return str(path)
        except ConfigError as error:
            # The run was killed while it was being written.
            print_log(f'Not used to resume: {error}', logger='current')
    return None


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics that are numbers, as numbers of Python."""
    plain = {}
    for key, value in metrics.items():
        value = value.item() if hasattr(value, 'item') else value
        if isinstance(value, (int, float)):
            plain[key] = value
    return plain
