"""The transfer study of arXiv 2007.08489: does a robust backbone transfer better?

One target task, backbones pre-trained at several eps, and two ways to learn the task
from each: on fixed features, or with the full network.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.runner import Runner

from ..distributed import start_processes
from ..errors import ConfigError, doing
from ..report import package_versions
from ..training import newest_checkpoint
from ..utils.files import finite, write_atomically
from ..utils.models import bare_model
from .backbone_plan import (
    Findings,
    Run,
    Sweep,
    check,
    loaded_digest,
    short,
    with_backbone,
)
from .backbone_table import Study
from .study import open_store, running, say, settings_of

_RESULT = 'result.json'


def run_sweep(sweep: Sweep, command: list[str]) -> Study:
    """Checks everything, runs what has not been run, and writes the table after each.

    A killed study goes on where it was. More eps, modes, learning rates and seeds may
    join the runs in a work dir.

    Args:
        sweep: the study.
        command: how it was called, for the report.

    Returns:
        The study's results.

    Raises:
        ConfigError: before the first run, for anything that cannot work, and if other
            settings made the runs that are there.
    """
    start_processes(sweep.cfg)  # the runners do so too late for the checks
    found = check(sweep)
    runs = sweep.runs()
    results = {run: read_result(sweep.folder(run)) for run in runs}
    settings = {
        'config': settings_of(sweep.cfg.to_dict()),
        'checkpoints': {
            # A URL has no hash, but a name.
            f'eps {short(eps)}': found.hashes[eps] or path
            for eps, path in sweep.checkpoints.items()
        },
        'norm': sweep.norm,
        'metric': found.metric,
        'selection': found.selection,
        'processes': get_world_size(),
    }
    there = _made(sweep.work_dir / 'runs')
    open_store(sweep.work_dir, settings, 'sweep.json', there, growing=('checkpoints',))
    done = sum(result is not None for result in results.values())
    resumable = sum(not results[run] and bool(begun(sweep.folder(run))) for run in runs)
    say(
        f'{len(runs)} runs: {len(sweep.checkpoints)} eps x {len(sweep.modes)} modes x '
        f'{len(sweep.lrs)} learning rates x {len(sweep.seeds)} seeds; {done} are done'
        f', {resumable} begun. Compared by {found.metric}.'
    )
    for note in found.notes:
        say(note)
    study = Study(sweep, found, results, command)
    study.write()
    for index, run in enumerate(runs, 1):
        if results[run] is not None:
            continue
        say(f'Run {index} of {len(runs)}: {run.name}')
        results[run] = result = run_one(sweep, run, found)
        study.write()
        say(f'{run.name}: {found.metric} = {result["value"]}')
    return study


def _made(runs: Path) -> Iterator[Path]:
    yield from runs.rglob(_RESULT)
    yield from runs.rglob('*.pth')


def run_config(sweep: Sweep, run: Run) -> Config:
    """Returns the config of one run, without where it resumes from."""
    cfg = with_backbone(sweep.cfg, sweep.checkpoints[run.eps])
    cfg.optim_wrapper.optimizer.lr = run.lr
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': run.seed}
    cfg.work_dir = str(sweep.folder(run))
    hooks = [{'type': 'mmrobust.SeedUpdatesHook'}]
    if run.mode == 'fixed':
        hooks.append({'type': 'mmrobust.FreezeBackboneHook'})
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), *hooks]
    defaults = cfg.get('default_hooks') or {}
    saving = dict(
        defaults.get('checkpoint') or {'type': 'CheckpointHook', 'interval': 1}
    )
    # The older one is deleted before the newer one is whole.
    saving.setdefault('max_keep_ckpts', 2)
    cfg.default_hooks = {**defaults, 'checkpoint': saving}
    return cfg


def run_one(sweep: Sweep, run: Run, found: Findings) -> dict[str, Any]:
    """Trains, evaluates and writes ``result.json``, whose content it returns.

    Raises:
        ConfigError: if the evaluation does not give the figure, or the backbone was to
            be fixed and is not.
    """
    folder, cfg = sweep.folder(run), run_config(sweep, run)
    resumed = begun(folder)
    if resumed is not None:
        cfg.resume, cfg.load_from = True, resumed
    started = time.monotonic()
    with running(cfg, run.name.replace('/', '_')) as runner:
        with doing(f'training {run.name}'):
            runner.train()
        validated = _numbers(runner.val_loop.run()) if found.selection else {}
        tested = _numbers(runner.test_loop.run())
        result = {
            'eps': run.eps,
            'mode': run.mode,
            'lr': run.lr,
            'seed': run.seed,
            'value': _figure(tested, found.metric, sweep, run),
            'selected_by': _figure(validated, found.selection, sweep, run)
            if found.selection
            else tested[found.metric],
            'metrics': tested,
            'validation': validated,
            'updates': runner.iter,
            **_described(cfg, runner),
            'resumed': resumed is not None,
            'seconds': round(time.monotonic() - started, 1),
            'versions': package_versions(),
        }
    if run.mode == 'fixed' and result['backbone_sha256'] != found.backbones[run.eps]:
        raise ConfigError(
            f'{run.name}: the backbone is not the one of the checkpoint at the end, '
            'although it was fixed; a hook of the config may load other weights.'
        )
    result = finite(result)
    if is_main_process():
        write_atomically(folder / _RESULT, json.dumps(result, indent=2) + '\n')
    barrier()
    return result


def _figure(metrics: Mapping[str, Any], key: str, sweep: Sweep, run: Run) -> Any:
    if key in metrics:
        return metrics[key]
    if not metrics:  # CocoMetric's answer to no detection at all
        raise ConfigError(
            f'the model of {run.name} ({sweep.checkpoints[run.eps]!r}) detects '
            f'nothing, so its evaluation gives no {key!r}: check checkpoint and '
            'schedule.'
        )
    raise ConfigError(
        f'the evaluation gives no {key!r} but {", ".join(metrics)}: choose one of them '
        'with --metric.'
    )


def _described(cfg: Config, runner: Runner) -> dict[str, Any]:
    model = bare_model(runner.model)
    weights = list(model.parameters())
    return {
        'trainable_parameters': sum(p.numel() for p in weights if p.requires_grad),
        'parameters': sum(p.numel() for p in weights),
        'backbone_sha256': loaded_digest(cfg, model),
    }


def read_result(folder: Path) -> dict[str, Any] | None:
    """Reads the result of a finished run, or None if there is none.

    Raises:
        ConfigError: if the file is damaged.
    """
    path = folder / _RESULT
    if not path.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ConfigError(
            f'{path} is damaged: remove it, and the run is evaluated again.'
        ) from error
    return result


def begun(folder: Path) -> str | None:
    """Finds the last whole checkpoint of an interrupted run."""
    try:
        return newest_checkpoint(str(folder))[0]
    except ConfigError:  # killed while the first one was being written
        return None


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps metrics that are numbers, as numbers of Python."""
    plain = {k: v.item() if hasattr(v, 'item') else v for k, v in metrics.items()}
    return {k: v for k, v in plain.items() if isinstance(v, (int, float))}
