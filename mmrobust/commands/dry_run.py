"""What ``--dry-run`` does: a few updates on made-up pictures, and an estimate.

The config's own loop, adversary, pipeline, network and optimizer work as they would;
only the pictures are made up, and weights are random. Nothing is downloaded or kept.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope, init_default_scope
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..errors import ConfigError
from ..registry import ADVERSARIES
from ..utils.configs import type_name
from ..utils.runner import release
from .made_up import dicts, make_up
from .rehearsal import Measured, RehearsalHook, RehearsedError

# Pictures of well-known sets, which need not be there: by what their configs name.
_KNOWN = {
    'instances_train2017.json': 117266,  # with objects
    'VOC2007/ImageSets/Main/trainval.txt': 5011,
    'VOC2012/ImageSets/Main/trainval.txt': 11540,
}
_IMAGENET = 1281167
_BYTES = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
_OPERATIONS = ('FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP', 'PFLOP')


def dry_run(cfg: Config, processes: int) -> str:
    """Makes a few updates of a training and says what all of it takes.

    Args:
        cfg: the config; it is changed.
        processes: that share the training, each with the config's batch.

    Returns:
        Lines to print.

    Raises:
        ConfigError: for data that cannot be made up (panoptic ones, say), or a training
            that ended before it was measured.
    """
    if processes < 1:
        raise ConfigError(f'--dry-run {processes} must be a number of processes.')
    # PyTorch's profiler writes what it does to stderr otherwise.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    notes = []
    scope = cfg.get('default_scope') or 'mmdet'
    with (
        DefaultScope.overwrite_default_scope(scope),
        tempfile.TemporaryDirectory() as folder,
    ):
        init_default_scope(scope)
        images = _images(cfg.train_dataloader.dataset)
        replays = _without_repetition(cfg)
        notes += _simplify(cfg, Path(folder))
        loader = cfg.train_dataloader
        # More than the batches of all that is measured.
        make_up(loader, Path(folder), 6 * (loader.get('batch_size') or 2))
        runner = Runner.from_cfg(cfg)
        hook = RehearsalHook()
        runner.register_hook(hook, priority=hook.priority)
        try:
            runner.train()
            raise ConfigError('the training ended before it was measured.')
        except RehearsedError:
            schedule = _schedule(runner, images, processes, hook.found.batch, replays)
        finally:
            hook.measuring.close()
            release(runner)
    return '\n'.join(_lines(hook.found, schedule, processes, notes))


def _without_repetition(cfg: Config) -> int:
    """Lets the adversary be as it is late in a training, each batch used once.

    Returns:
        How often it uses a batch in truth.
    """
    settings = cfg.train_cfg.get('adversary')
    if settings is None:
        return 1
    replays = ADVERSARIES.build(settings).replays
    settings.pop('warmup_iters', None)
    if replays > 1:
        settings['replays'] = 1
    return replays


def _simplify(cfg: Config, folder: Path) -> list[str]:
    """Takes out what an update does not need, and returns what to know about it."""
    notes = []
    if cfg.pop('runner_type', None) or cfg.get('strategy'):
        cfg.pop('strategy', None)
        notes.append('Memory is that of one process which shares nothing with others.')
    if cfg.optim_wrapper.pop('accumulative_counts', 1) > 1:
        notes.append('Each batch of an accumulation counts as an update.')
    for part in dicts(cfg.model):
        if 'checkpoint' in (part.get('init_cfg') or ()):
            part['init_cfg'] = None
        if 'pretrained' in part:
            part['pretrained'] = None
    for name in ('val', 'test'):
        for key in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{name}_{key}'] = None
    hooks = {**(cfg.get('default_hooks') or {}), 'logger': None, 'checkpoint': None}
    hooks.pop('visualization', None)
    cfg.default_hooks = hooks
    cfg.visualizer = None
    cfg.update(launcher='none', resume=False, load_from=None, log_level='ERROR')
    cfg.work_dir = str(folder / 'work')
    cfg.experiment_name = f'dry_run_{uuid.uuid4().hex}'
    return notes


def _images(dataset: dict) -> int | None:
    """Pictures in a dataset of the config; None if it is unknown, and not there."""
    if 'datasets' in dataset:
        counts = [_images(inner) for inner in dataset['datasets']]
        return None if None in counts else sum(count or 0 for count in counts)
    if isinstance(dataset.get('dataset'), dict):
        inner = _images(dataset['dataset'])
        return None if inner is None else inner * dataset.get('times', 1)
    if dataset.get('indices') is None:
        if type_name(dataset) == 'ImageNet' and dataset.get('split') == 'train':
            return _IMAGENET
        for name, count in _KNOWN.items():
            if str(dataset.get('ann_file')).endswith(name):
                return count
    try:
        return len(DATASETS.build(dataset))
    except Exception:  # whatever is missing, the estimate per update needs none of it
        return None


def _schedule(
    runner: Runner, images: int | None, processes: int, batch: int, replays: int
) -> tuple[int | None, str]:
    """How many updates the training makes, and how that comes about."""
    loop: Any = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop):
        return loop.max_iters, 'as the config says'
    if images is None:
        return None, (
            f'{loop.max_epochs} epochs of unknown length: the data are not there'
        )
    length = -(-images // (batch * processes)) * replays
    how = f'{loop.max_epochs} epochs of {length}, for {images} pictures'
    return loop.max_epochs * length, how + (f' used {replays} times' * (replays > 1))


def _lines(
    found: Measured, schedule: tuple[int | None, str], processes: int, notes: list[str]
) -> list[str]:
    device = get_device()
    name = torch.cuda.get_device_name() if device == 'cuda' else device
    where = f'{name} with {torch.get_num_threads()} thread(s) of PyTorch'
    updates, how = schedule
    sizes = ', '.join(f'{h} x {w}' for h, w in sorted(found.shapes))
    parts = dict(found.parts)
    if processes > 1:
        parts["DDP's buckets"] = parts['gradients']
    parts['activations and scratch'] = int(found.peak)
    line = f', on a line to {found.batch}' * (found.measured < found.batch)
    scaled = f', scaled to {found.batch}' * (found.timed < found.batch)
    rows = {
        'batch': f'{found.batch} images of {sizes} in each of {processes} processes',
        'updates': f'{"unknown" if updates is None else updates} ({how})',
        'passes': f'{found.forward} forward and {found.backward} backward, counted',
        'operations': f'{_scaled(found.operations, 1e3, _OPERATIONS)}, of '
        'convolutions and matrix products, counted',
        'memory': f'{_scaled(sum(parts.values()), 1024, _BYTES)}, the sum of',
        **{f'  {part}': _scaled(size, 1024, _BYTES) for part, size in parts.items()},
    }
    rows['  activations and scratch'] += (
        f', measured with up to {found.measured} images{line}'
    )
    if found.allocated is not None:
        allocated = _scaled(found.allocated, 1024, _BYTES)
        rows['  allocated at most'] = f'{allocated}, measured with {found.timed} images'
    rows['time'] = f'{found.seconds:.3g} s, measured with {found.timed} images{scaled}'
    rows['loading'] = f'{found.loading:.3g} s for a batch in one process, measured'
    if updates is not None:
        rows['all updates'] = (
            f'{_duration(updates * found.seconds)}, computed: without validation, and '
            'no process waits for data or another one'
        )
    width = max(map(len, rows))
    return [
        f'Dry run on {where}: pictures made up, weights random; of an update and one '
        'process, where nothing else is said:',
        *(f'  {name:{width}}  {text}' for name, text in rows.items()),
        *notes,
    ]


def _scaled(number: float, step: float, units: tuple[str, ...]) -> str:
    power = 0
    while number >= 1000 and power < len(units) - 1:
        number, power = number / step, power + 1
    return f'{number:.3g} {units[power]}'


def _duration(seconds: float) -> str:
    for name, length in (('days', 86400), ('hours', 3600), ('minutes', 60)):
        if seconds >= 2 * length:
            count = seconds / length
            return f'{count:.0f} {name}' if count >= 100 else f'{count:.3g} {name}'
    return f'{seconds:.3g} s'
