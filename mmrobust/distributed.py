"""Several processes of one run: how they start, and what they share.

When a process ends in an error, its launcher ends the others: torchrun and mpirun by
themselves, srun with ``--kill-on-bad-exit=1``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size, init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn

from .errors import ConfigError
from .utils.models import replaced


def start_processes(cfg: Config) -> None:
    """Starts the processes of a config's ``launcher`` as the Runner does, also on CPUs.

    Does nothing without a launcher, or if the processes are started already.

    Args:
        cfg: config of a Runner. On CPUs its ``model_wrapper_cfg`` is set.

    Raises:
        ConfigError: if the launcher has not set what the processes need.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or is_distributed():
        return
    env = cfg.get('env_cfg') or {}
    # First, as in the runner: starting would choose another method.
    set_multi_processing(**(env.get('mp_cfg') or {}), distributed=True)
    settings = dict(env.get('dist_cfg') or {})
    set_device = torch.cuda.set_device
    if get_device() == 'cpu':
        # mmengine's own way and its default wrapper ask for a GPU.
        settings['backend'] = 'gloo'
        torch.cuda.set_device = lambda device: None
        if cfg.get('model_wrapper_cfg') is None:
            cfg.model_wrapper_cfg = {
                'type': 'MMDistributedDataParallel',
                'broadcast_buffers': False,
                'find_unused_parameters': cfg.get('find_unused_parameters', False),
            }
        wrapper = cfg.model_wrapper_cfg
        if str(wrapper.get('type')).endswith('DistributedDataParallel'):
            wrapper.setdefault('device_ids', None)
    try:
        init_dist(launcher, **settings)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f'the processes of --launcher {launcher} cannot start ({error}): start '
            'them by torchrun, srun or mpirun, which tell each its place.'
        ) from error
    finally:
        torch.cuda.set_device = set_device


@contextmanager
def alone() -> Iterator[None]:
    """Hides the other processes from the model.

    Heads of mmdet average the number of objects over all processes
    (``reduce_mean``). In training that is right. In an evaluation it would couple an
    image's loss to the images of other processes, and all of them would have to ask
    for as many losses, which attacks that stop early do not.
    """
    if not torch.distributed.is_available():
        yield
        return
    is_initialized = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = is_initialized


def is_sharded(model: nn.Module) -> bool:
    """Tells whether FSDP has shared out a model's weights among the processes."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(model, FullyShardedDataParallel)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside, a model that FSDP has shared out has all its weights in every process.

    It computes as if there were no FSDP, so that processes may ask for losses as often
    as each of them likes. All of them have to come here, and outside of a forward or
    backward pass. Weights may not be changed inside; gradients of images exist, those
    of weights are not shared. Other models stay as they are.
    """
    if not is_sharded(model):
        yield
        return
    sharded: Any = model
    with ExitStack() as stack:
        stack.enter_context(sharded.summon_full_params(model, writeback=False))
        for part in sharded.fsdp_modules(model):
            # FSDP's own would gather the weights again.
            stack.enter_context(replaced(part, 'forward', part._fsdp_wrapped_module))
        yield


@contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, all processes have the buffers of the first one, which are those saved.

    In training each one has BatchNorm statistics of its own, unless mmengine's
    SyncBuffersHook is among the hooks, and what they would evaluate is no one model.
    """
    if get_world_size() == 1:
        yield
        return
    own = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for buffer, _ in own:
        broadcast(buffer)
    try:
        yield
    finally:
        for buffer, value in own:
            buffer.copy_(value)
