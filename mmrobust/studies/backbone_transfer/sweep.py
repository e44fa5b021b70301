"""All runs of a study, one after the other, as often interrupted as it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mmengine.dist import barrier, get_world_size, is_main_process

from ...distributed import together
from ...errors import ConfigError
from ...utils.files import write_atomically
from ...utils.store import changes
from .plan import Run, Sweep, number
from .preflight import Findings, check
from .runs import latest_checkpoint, read_result, run_one
from .table import Study

SETTINGS = 'sweep.json'

# Settings without influence on the figures.
_IGNORED = re.compile(
    r'(work_dir|launcher|log_level|log_processor|visualizer|vis_backends|env_cfg'
    r'|experiment_name|default_hooks|resume|load_from|optim_wrapper\.optimizer\.lr'
    r'|randomness\.seed|model_wrapper_cfg)($|[.\[])'
)
_IGNORED_LEAVES = ('num_workers', 'persistent_workers', 'pin_memory')


def run_sweep(sweep: Sweep, command: list[str]) -> Study:
    """Checks everything, runs what has not been run, and writes the table after each.

    Args:
        sweep: the study.
        command: how it was called, for the report.

    Returns:
        The study's results.

    Raises:
        ConfigError: before the first run, for anything that cannot work.
    """
    # Not the runners' task, who come too late for checks.
    with together(sweep.cfg):
        return _run_sweep(sweep, command)


def _run_sweep(sweep: Sweep, command: list[str]) -> Study:
    found = check(sweep)
    runs = sweep.runs()
    results = {run: read_result(sweep.folder(run)) for run in runs}
    check_same_study(sweep, found)
    begun = [
        run for run in runs if not results[run] and latest_checkpoint(sweep.folder(run))
    ]
    done = sum(result is not None for result in results.values())
    _say(
        f'{len(runs)} runs: {len(sweep.checkpoints)} eps x {len(sweep.modes)} modes x '
        f'{len(sweep.lrs)} learning rates x {len(sweep.seeds)} seeds; {done} are done'
        f', {len(begun)} begun. Compared by {found.metric}.'
    )
    for note in found.notes:
        _say(note)
    study = Study(sweep, found, results, command)
    study.write()
    for index, run in enumerate(runs, 1):
        if results[run] is not None:
            continue
        _say(f'Run {index} of {len(runs)}: {run.name}')
        result = run_one(sweep, run, found.metric, found.selection)
        _check_fixed(run, result, found)
        results[run] = result
        study.write()
        _say(f'{run.name}: {found.metric} = {result["value"]}')
    return study


def check_same_study(sweep: Sweep, found: Findings) -> None:
    """Refuses to mix runs of different settings in one table.

    More eps, modes, learning rates and seeds may join the runs in a work dir.

    Raises:
        ConfigError: if other settings made the runs that are there.
    """
    path = sweep.work_dir / SETTINGS
    given: dict[str, Any] = {
        'config': settings_of(sweep.cfg),
        'checkpoints': {
            # A URL has no hash, but a name.
            number(eps): found.hashes[eps] or path
            for eps, path in sweep.checkpoints.items()
        },
        'norm': sweep.norm,
        'metric': found.metric,
        'selection': found.selection,
        'processes': get_world_size(),
    }
    given = json.loads(json.dumps(given, default=str))
    runs = sweep.work_dir / 'runs'
    there = any(runs.rglob('result.json')) or any(runs.rglob('*.pth'))
    if path.is_file() and there:
        try:
            old = json.loads(path.read_text(encoding='utf-8'))
            changed = differences(old, given)
            given['checkpoints'] = {**old['checkpoints'], **given['checkpoints']}
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f'{path} is damaged, so what the runs beside it were made with is not '
                'known: give another --work-dir.'
            ) from error
        if changed:
            raise ConfigError(
                f'the runs in {str(sweep.work_dir)!r} were made with other settings ('
                + '; '.join(changed[:4])
                + ('; ...' if len(changed) > 4 else '')
                + '): give another --work-dir, or the same settings.'
            )
    elif there:
        raise ConfigError(
            f'{str(runs)!r} holds runs but {path} is missing, so what they were made '
            'with is not known: give another --work-dir.'
        )
    barrier()  # nobody writes before all have read
    if is_main_process():
        sweep.work_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(given, indent=1) + '\n')


def settings_of(cfg: Any) -> dict[str, Any]:
    """The settings of a config that can change figures, by dotted name."""
    flat: dict[str, Any] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                walk(value, f'{name}.{key}' if name else str(key))
        elif isinstance(node, (list, tuple)) and any(
            isinstance(inner, (Mapping, list, tuple)) for inner in node
        ):
            for index, value in enumerate(node):
                walk(value, f'{name}[{index}]')
        else:
            flat[name] = list(node) if isinstance(node, (list, tuple)) else node

    walk(cfg.to_dict(), '')
    return {
        name: value
        for name, value in flat.items()
        if not _IGNORED.match(name) and name.rsplit('.', 1)[-1] not in _IGNORED_LEAVES
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What has changed between two descriptions of a study, in words."""
    found = []
    for key in ('norm', 'metric', 'selection', 'processes'):
        if old[key] != new[key]:
            found.append(f'{key} was {old[key]} and is {new[key]}')
    for eps, file in new['checkpoints'].items():
        if old['checkpoints'].get(eps, file) != file:
            found.append(f'the checkpoint of eps {eps} is another file')
    return found + changes(old['config'], new['config'])


def _check_fixed(run: Run, result: dict, found: Findings) -> None:
    if run.mode == 'fixed' and result['backbone_sha256'] != found.backbones[run.eps]:
        raise ConfigError(
            f'{run.name}: the backbone is not the one of the checkpoint at the end, '
            'although it was fixed; a hook of the config may load other weights.'
        )


def _say(text: str) -> None:
    if is_main_process():
        print(text, flush=True)
