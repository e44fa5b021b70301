"""Reading checkpoints with errors a user understands, and checking that they fit."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from contextlib import nullcontext
from typing import Any
from urllib.error import URLError

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..compat.checkpoints import NO_TRUST, TRUST, is_on, reads_safely, switched
from ..errors import ConfigError

# BatchNorm's counters: no weights, and absent from files of old torch versions.
_OPTIONAL = ('num_batches_tracked',)


def read_checkpoint(
    path: str, trust: bool = False, switch: str = f'set {TRUST}=1'
) -> dict[str, Any]:
    """Reads a checkpoint from a file or URL onto the CPU.

    Pickled code of unknown origin is not run: torch reads tensors and the few classes
    that mmengine's own checkpoints hold.

    Args:
        path: a file (``.safetensors`` too), or anything else that mmengine's
            CheckpointLoader knows.
        trust: run what code the file holds.
        switch: how the user can set ``trust``, for the message.

    Returns:
        The checkpoint.

    Raises:
        ConfigError: if it is missing, damaged, not a checkpoint, cannot be downloaded,
            or holds other classes.
    """
    if '://' not in path and not os.path.isfile(path):
        raise ConfigError(f'checkpoint {path!r} does not exist: check the path.')
    trusted = trust or is_on(TRUST)
    if path.endswith('.safetensors'):
        return _read_safetensors(path)
    try:
        # Only one of torch's switches may be on.
        with switched(NO_TRUST, not trusted) if not is_on(TRUST) else nullcontext():
            if '://' in path:
                checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
            else:
                checkpoint = _read_file(path, trusted)
    except pickle.UnpicklingError as error:
        named = re.search(r'(GLOBAL|Unsupported class) `?([\w.]+)', str(error))
        if named:
            reason = named[2]
            raise ConfigError(
                f'checkpoint {path!r} holds pickled code ({reason}), which is not run '
                'for files of unknown origin: save its tensors alone with torch.save, '
                f'or, if you trust the file, {switch}.'
            ) from error
        raise ConfigError(f'checkpoint {path!r} is no readable torch file.') from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'checkpoint {path!r} holds objects of the package {error.name!r}, which '
            'is not installed: install it to read the file.'
        ) from error
    except (URLError, TimeoutError, ConnectionError) as error:
        raise ConfigError(
            f'checkpoint {path!r} could not be downloaded ({error}): download it where '
            'there is a network and give the path of the file instead.'
        ) from error
    except (
        RuntimeError,
        AttributeError,
        EOFError,
        OSError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise ConfigError(
            f'checkpoint {path!r} cannot be read and is probably damaged or incomplete '
            f'({_first_line(error)}).'
        ) from error
    except KeyError as error:
        if '://' not in path:
            raise
        raise ConfigError(
            f'checkpoint {path!r}: {error} is no name that mmengine knows.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(f'checkpoint {path!r} holds a {type(checkpoint).__name__}.')
    _refuse_nan(path, checkpoint)
    return checkpoint


def _refuse_nan(path: str, checkpoint: dict[str, Any]) -> None:
    """A model of NaN detects nothing, which looks like a perfect attack."""
    state = state_dict_of(checkpoint)
    wrong = [k for k, v in state.items() if v.is_floating_point() and v.isnan().any()]
    if wrong:
        raise ConfigError(
            f'checkpoint {path!r} has weights that are no numbers ({len(wrong)} of '
            f'{len(state)} tensors, {wrong[0]!r} first): the training that wrote it '
            'has diverged; take an earlier one.'
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


def _read_file(path: str, trusted: bool) -> Any:
    # Not mmengine's loader: a fork of it retries refused files unprotected.
    if trusted or reads_safely():
        return torch.load(path, map_location='cpu', weights_only=not trusted)
    from ..compat import restricted_pickle

    with switched(NO_TRUST, False):  # which knows fewer classes
        return torch.load(path, map_location='cpu', pickle_module=restricted_pickle)


def check_initial_weights(model: Any) -> None:
    """Reads the files of mmengine's ``init_cfg`` before anything is built.

    mmengine reads them late, and with some versions of torch and of mmengine runs the
    code that they hold.

    Args:
        model: the config of a model, or of a part of it.

    Raises:
        ConfigError: as :func:`read_checkpoint`.
    """
    if isinstance(model, (list, tuple)):
        for part in model:
            check_initial_weights(part)
    elif isinstance(model, dict):
        path = model.get('checkpoint') if model.get('type') == 'Pretrained' else None
        if isinstance(path, str) and '://' not in path:
            read_checkpoint(path)
        for part in model.values():
            check_initial_weights(part)


def _read_safetensors(path: str) -> dict[str, Any]:
    if '://' in path:
        raise ConfigError(f'{path!r}: download .safetensors and give the file.')
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError(
            f'checkpoint {path!r} needs the package safetensors: pip install '
            'safetensors.'
        ) from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            f'checkpoint {path!r} cannot be read and is probably damaged or incomplete '
            f'({_first_line(error)}).'
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights inside a checkpoint, whatever level they lie on."""
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    return {
        str(key): value
        for key, value in checkpoint.items()
        if isinstance(value, Tensor)
    }


def misfits(own: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """Names of weights that are missing or of another shape in ``given``."""
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
        ConfigError: if any weight is missing or has another shape.
    """
    given = state_dict_of(read_checkpoint(path))
    given = {name.removeprefix('module.'): value for name, value in given.items()}
    wrong = misfits(model.state_dict(), given)
    if wrong:
        shown = ', '.join(wrong[:3]) + (', ...' if len(wrong) > 3 else '')
        raise ConfigError(
            f'checkpoint {path!r} does not fit {type(model).__name__}: {len(wrong)} of '
            f'{len(model.state_dict())} weights are missing or have another shape '
            f'({shown}); is it the checkpoint of this config?'
        )
