"""What ``--dry-run`` does: a few updates on made-up pictures, and an estimate.

The config's own loop, adversary, pipeline, network and optimizer work as they would;
only the pictures are made up, and weights are random. Nothing is downloaded or kept.
"""

from __future__ import annotations

import io
import os
import tempfile
import uuid
from contextlib import redirect_stdout
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope, init_default_scope
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..errors import ConfigError, short
from ..registry import ADVERSARIES
from ..utils.configs import innermost, type_name
from ..utils.runner import release
from .made_up import OWN, check_datasets, dicts, make_up
from .rehearsal import UPDATES, Measured, RehearsalHook, RehearsedError

# Pictures of well-known sets, which need not be there: by what their configs name.
_KNOWN = {
    'instances_train2017.json': 117266,  # with objects
    'VOC2007/ImageSets/Main/trainval.txt': 5011,
    'VOC2012/ImageSets/Main/trainval.txt': 11540,
}
_IMAGENET = 1281167
# Of several processes each holds everything, and a copy of the gradients besides.
_DDP = ('', 'DDPStrategy', 'MMDistributedDataParallel', 'DistributedDataParallel')
_TOO_SHORT = (
    f'the training ends before it is measured: --dry-run makes {UPDATES} updates, so '
    f'set train_cfg.max_iters to {UPDATES} or more.'
)
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
        ConfigError: for data that cannot be made up (panoptic ones, say), a text
            encoder that is not there, or a training too short to be measured.
    """
    if processes < 1:
        raise ConfigError(f'--dry-run {processes} must be a number of processes.')
    loader = cfg.train_dataloader
    batch_size = loader.get('batch_size', 2)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(
            f'batch_size={batch_size!r} of train_dataloader must be a number from 1.'
        )
    if (cfg.train_cfg.get('max_iters') or UPDATES) < UPDATES:
        raise ConfigError(_TOO_SHORT)
    _check_text_encoders(cfg.model)
    # PyTorch's profiler writes what it does to stderr otherwise.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    notes = []
    scope = cfg.get('default_scope') or 'mmdet'
    with (
        DefaultScope.overwrite_default_scope(scope),
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()),  # pycocotools says that it loads annotations
    ):
        init_default_scope(scope)
        check_datasets(loader.get('dataset'))
        dataset = deepcopy(loader.dataset)
        replays = _without_repetition(cfg)
        sharded = _sharded(cfg)
        notes += _simplify(cfg, Path(folder), sharded)
        # More than the batches of all that is measured.
        make_up(loader, Path(folder), 6 * batch_size)
        runner = Runner.from_cfg(cfg)
        hook = RehearsalHook()
        runner.register_hook(hook, priority=hook.priority)
        try:
            runner.train()
            raise ConfigError(_TOO_SHORT)
        except RehearsedError:
            schedule = _schedule(runner, dataset, processes, hook.found.batch, replays)
        finally:
            hook.measuring.close()
            release(runner)
    copies = 0 if sharded or processes == 1 else hook.found.parts['gradients']
    return '\n'.join(_lines(hook.found, schedule, processes, copies, notes))


def _check_text_encoders(model: dict) -> None:
    """Refuses a BERT (GLIP, Grounding DINO) whose weights would be downloaded."""
    for part in dicts(model):
        name = str(part.get('name'))
        if type_name(part) == 'BertModel' and not (
            os.path.isdir(name) or _in_the_cache(name)
        ):
            raise ConfigError(
                f'the text encoder {name!r} is not on this machine, and --dry-run '
                'downloads nothing: fetch it, or name its folder (lang_model_name).'
            )


def _in_the_cache(name: str) -> bool:
    """Tells whether a download of Hugging Face has left a model's weights here."""
    if find_spec('huggingface_hub') is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    files = ('model.safetensors', 'pytorch_model.bin')
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


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


def _sharded(cfg: Config) -> str:
    """Names the strategy or wrapper that shares the training out, other than DDP."""
    for key in ('strategy', 'model_wrapper_cfg'):
        name = type_name(cfg.get(key))
        if name not in _DDP:
            return name
    return ''


def _simplify(cfg: Config, folder: Path, sharded: str) -> list[str]:
    """Takes out what an update does not need, and returns what to know about it."""
    notes = []
    for key in ('runner_type', 'strategy', 'model_wrapper_cfg'):
        cfg.pop(key, None)
    if sharded:
        notes.append(
            f'{sharded} is left out, with its sharding and recomputation: memory and '
            'time are those of one process that holds everything.'
        )
    if any(type_name(part) in OWN for part in innermost(cfg.train_dataloader.dataset)):
        notes.append("The pictures made up are the demo's digits.")
    if cfg.optim_wrapper.pop('accumulative_counts', 1) > 1:
        notes.append('Each batch of an accumulation counts as an update.')
    for part in dicts(cfg.model):
        initial = part.get('init_cfg') or []
        initial = initial if isinstance(initial, (list, tuple)) else [initial]
        if any('checkpoint' in one for one in initial):
            rest = [one for one in initial if 'checkpoint' not in one]
            part['init_cfg'] = rest or None  # [] is no default, to some models
        for key in ('pretrained', 'teacher_ckpt'):
            if key in part:
                part[key] = None
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


def _images(dataset: dict) -> int:
    """Counts the pictures of a config's dataset; writes nothing.

    Raises:
        Exception: saying why they cannot be counted.
    """
    kind = type_name(dataset)
    if kind == 'ConcatDataset':
        return sum(_images(inner) for inner in dataset['datasets'])
    if kind in ('RepeatDataset', 'MultiImageMixDataset'):
        return _images(dataset['dataset']) * dataset.get('times', 1)
    try:
        return _there(dataset)
    except Exception:
        count = _published(dataset)
        if count is None:
            raise
        return count


def _there(dataset: dict) -> int:
    if type_name(dataset) == 'TarShardsDataset' and dataset.get('indices') is None:
        count = DATASETS.build({**dataset, 'lazy_init': True}).count_noted()
        if count is not None:
            return count
    # To build these writes data or notes.
    for inner in map(type_name, innermost(dataset)):
        if inner in (*OWN, 'TarShardsDataset'):
            raise ConfigError(f'{inner} is counted when a training reads it')
    return len(DATASETS.build(dataset))


def _published(dataset: dict) -> int | None:
    """The number of pictures of a well-known set that is not there."""
    if dataset.get('indices') is not None:
        return None
    if type_name(dataset) == 'ImageNet' and dataset.get('split') == 'train':
        return _IMAGENET
    ends = str(dataset.get('ann_file')).endswith
    return next((count for name, count in _KNOWN.items() if ends(name)), None)


def _schedule(
    runner: Runner, dataset: dict, processes: int, batch: int, replays: int
) -> tuple[int | None, str]:
    """How many updates the training makes, and how that comes about."""
    loop: Any = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop):
        return loop.max_iters, 'as the config says'
    try:
        images = _images(dataset)
    except Exception as error:  # the estimate per update needs none of it
        return None, f'{loop.max_epochs} epochs of unknown length: {short(str(error))}'
    length = -(-images // (batch * processes)) * replays
    how = f'{loop.max_epochs} epochs of {length}, for {images} pictures'
    return loop.max_epochs * length, how + (f' used {replays} times' * (replays > 1))


def _lines(
    found: Measured,
    schedule: tuple[int | None, str],
    processes: int,
    copies: int,
    notes: list[str],
) -> list[str]:
    device = get_device()
    name = torch.cuda.get_device_name() if device == 'cuda' else device
    where = f'{name} with {torch.get_num_threads()} thread(s) of PyTorch'
    updates, how = schedule
    sizes = ', '.join(f'{h} x {w}' for h, w in sorted(found.shapes))
    parts = dict(found.parts)
    if copies:
        parts["DDP's buckets"] = copies
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
