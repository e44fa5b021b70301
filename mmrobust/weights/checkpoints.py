"""Reads checkpoints safely, and makes sure that they fit the model they are for."""

from __future__ import annotations

import os
import pickle
import re
from contextlib import nullcontext
from typing import Any
from urllib.error import URLError

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..compat import checkpoints
from ..compat.checkpoints import NO_TRUST, TRUST, is_on, reads_safely, switched
from ..errors import ConfigError

# No weights, and absent from many files: BatchNorm's counters, and the places in a
# Swin's tables that follow from its windows.
_OPTIONAL = ('num_batches_tracked', 'relative_position_index')


def read_checkpoint(path: str, trust: bool = False) -> dict[str, Any]:
    """Reads a checkpoint from a file or URL onto the CPU.

    Pickled code of unknown origin is not run: torch reads tensors and the few classes
    that mmengine's own checkpoints hold.

    Args:
        path: a file (``.safetensors`` too), or anything else that mmengine's
            CheckpointLoader knows.
        trust: run what code the file holds.

    Returns:
        The checkpoint.

    Raises:
        ConfigError: if it is missing, damaged, not a checkpoint, cannot be downloaded,
            holds other classes, or has weights that are NaN.
    """
    if '://' not in path and not os.path.isfile(path):
        raise ConfigError(f'checkpoint {path!r} does not exist: check the path.')
    if '://' in path and path.endswith('.safetensors'):
        raise ConfigError(f'{path!r}: download .safetensors and give the file.')
    try:
        checkpoint = _load(path, trust or is_on(TRUST))
    except Exception as error:
        fault = _fault(path, error)
        raise ConfigError(f'checkpoint {path!r} {fault}') from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(f'checkpoint {path!r} holds a {type(checkpoint).__name__}.')
    state = state_dict_of(checkpoint)
    wrong = [k for k, v in state.items() if v.is_floating_point() and _has_nan(v)]
    if wrong:  # such a model detects nothing, which looks like a perfect attack
        raise ConfigError(
            f'checkpoint {path!r} has weights that are no numbers ({len(wrong)} of '
            f'{len(state)} tensors, {wrong[0]!r} first): the training that wrote it '
            'has diverged; take an earlier one.'
        )
    return checkpoint


def _has_nan(value: Tensor) -> bool:
    # The sum of any with a NaN is one, which is had in a tenth of the time; but so is
    # that of infinities, and of 8 bits there is none.
    if value.element_size() > 1 and not value.sum().isnan():
        return False
    return bool(value.isnan().any())


def _load(path: str, trusted: bool) -> Any:
    if path.endswith('.safetensors'):
        from safetensors.torch import load_file

        return load_file(path)
    # Only one of torch's switches may be on.
    with switched(NO_TRUST, not trusted) if not is_on(TRUST) else nullcontext():
        if '://' in path:
            return CheckpointLoader.load_checkpoint(path, 'cpu')
        # Not mmengine's loader: a fork of it retries refused files unprotected.
        if trusted or reads_safely():
            return torch.load(path, map_location='cpu', weights_only=not trusted)
        with switched(NO_TRUST, False):  # which knows fewer classes
            return torch.load(path, map_location='cpu', pickle_module=checkpoints)


def _fault(path: str, error: Exception) -> str:
    """Says what is wrong with a file that could not be read, and what to do."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r'(GLOBAL|Unsupported class) `?([\w.]+)', str(error))
        if named is None:
            return 'is no readable torch file.'
        return (
            f'holds pickled code ({named[2]}), which is not run for files of unknown '
            'origin: save its tensors alone with torch.save; if you trust the file, '
            f'set {TRUST}=1, or convert it with tools/convert_backbone.py --trust.'
        )
    if isinstance(error, ModuleNotFoundError):
        return (
            f'needs the package {error.name!r}, which is not installed: install it to '
            'read the file.'
        )
    if isinstance(error, (URLError, TimeoutError, ConnectionError)):
        return (
            f'could not be downloaded ({error}): download it where there is a network '
            'and give the path of the file instead.'
        )
    if isinstance(error, KeyError) and '://' in path:
        return f'cannot be found: {error} is no name that mmengine knows.'
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f'cannot be read and is probably damaged or incomplete ({reason}).'


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the weights inside a checkpoint, whatever level they lie on."""
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    return {str(k): v for k, v in checkpoint.items() if isinstance(v, Tensor)}


def classes_of(checkpoint: dict[str, Any]) -> tuple[str, ...] | None:
    """Returns the names of the classes that a model was trained on, if they are there.

    Args:
        checkpoint: of mmengine, or of mmdet before version 3.
    """
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    for known in (meta.get('dataset_meta'), meta):
        if isinstance(known, dict):
            names = known.get('classes', known.get('CLASSES'))
            if isinstance(names, (list, tuple)) and names:
                return tuple(map(str, names))
    return None


def misfits(own: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """Lists the weights in ``own`` that ``given`` lacks or has in another shape."""
    return [
        name
        for name, value in own.items()
        if not name.endswith(_OPTIONAL)
        and (name not in given or given[name].shape != value.shape)
    ]


def check_checkpoint(path: str, model: nn.Module) -> None:
    """Makes sure that a checkpoint carries every weight of the model.

    mmengine loads what fits and logs the rest; a detector that is half random then
    gives a low AP that looks like a successful attack.

    Args:
        path: the checkpoint.
        model: the bare model it is meant for.

    Raises:
        ConfigError: if any weight is missing or has another shape; of a classifier
            whose number of classes alone is another one, naming both.
    """
    given = state_dict_of(read_checkpoint(path))
    given = {name.removeprefix('module.'): value for name, value in given.items()}
    own = model.state_dict()
    wrong = misfits(own, given)
    counts = {
        (len(given[name]), len(own[name]))
        for name in wrong
        if name.startswith('head.') and name in given and given[name].ndim
    }
    rows = all(
        name in given and given[name].shape[1:] == own[name].shape[1:] for name in wrong
    )
    if rows and len(counts) == 1:
        theirs, ours = counts.pop()
        raise ConfigError(
            f'checkpoint {path!r} is for {theirs} classes and the config for {ours}: '
            'set num_classes in model.head, or give the checkpoint of this config.'
        )
    if wrong:
        shown = ', '.join(wrong[:3]) + (', ...' if len(wrong) > 3 else '')
        raise ConfigError(
            f'checkpoint {path!r} does not fit {type(model).__name__}: {len(wrong)} of '
            f'{len(own)} weights are missing or have another shape ({shown}); is it '
            'the checkpoint of this config?'
        )


def check_resumable(path: str, checkpoint: dict[str, Any]) -> None:
    """Makes sure that a checkpoint knows where its training stopped.

    Raises:
        ConfigError: if it holds weights alone.
    """
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict) or not {'epoch', 'iter'} <= set(meta):
        raise ConfigError(
            f'checkpoint {path!r} does not say where its training stopped, so it '
            f'cannot be resumed: start from its weights with --cfg-options '
            f'load_from={path}.'
        )


def check_initial_weights(model: Any) -> None:
    """Reads the files of mmengine's ``init_cfg`` before anything is built.

    mmengine reads them late, and with some versions of torch and of mmengine runs the
    code that they hold.

    Args:
        model: the config of a model, or of a part of it.

    Raises:
        ConfigError: as :func:`read_checkpoint`.
    """
    if isinstance(model, dict):
        path = model.get('checkpoint') if model.get('type') == 'Pretrained' else None
        if isinstance(path, str) and '://' not in path:
            read_checkpoint(path)
        model = list(model.values())
    if isinstance(model, (list, tuple)):
        for part in model:
            check_initial_weights(part)
