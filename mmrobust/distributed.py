"""Several processes of one run: how they start, and how they stop together."""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import (
    all_gather_object,
    broadcast,
    broadcast_object_list,
    get_dist_info,
    get_world_size,
    init_dist,
    is_distributed,
)
from mmengine.logging import print_log
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn

from .errors import ConfigError

# Seconds for all processes to connect.
_PATIENCE = 30.0
# Seconds in which a process may end with an error of its own, which says more than
# that another one has ended.
_GRACE = 3.0
_BYE = b'bye'

_lifeline: Lifeline | None = None


@contextmanager
def together(cfg: Config | None = None) -> Iterator[None]:
    """Inside, the end of one process is the end of all.

    torchrun ends the others when one dies, other launchers need not, and then they
    would wait for its results for ever, or in NCCL for many minutes. Inside this
    context a process ends with status 1 and one sentence as soon as another one has
    died or left the context by an exception. Inside of itself it does nothing more.
    All processes must enter it; the first one leaves last.

    Args:
        cfg: config of a runner, to start the processes with if ``launcher`` says so
            and they are not yet, as the runner does, but on CPUs, too.

    Raises:
        ConfigError: if the launcher has not set what the processes need.
    """
    global _lifeline
    if cfg is not None:
        _start(cfg)
    if _lifeline is not None or get_world_size() == 1:
        yield
        return
    _lifeline = Lifeline()
    try:
        yield
    except BaseException as error:
        _lifeline.leave(error)
        raise
    else:
        _lifeline.leave()
    finally:
        _lifeline = None


def _start(cfg: Config) -> None:
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


class Lifeline:
    """Connections that break when a process ends.

    The first process holds one to each other one. The system closes it when a process
    ends, in whatever way, so that nobody has to ask: a process that computes for
    hours, holds the interpreter's lock or is suspended is alive. A machine that is
    lost is noticed by TCP's own probes, after minutes.

    Every process has to make one at the same time.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = get_dist_info()
        self._peers: dict[int, socket.socket] = {}
        self._news = ''
        self._lost, self._left = threading.Event(), threading.Event()
        self._stopping = threading.Lock()
        problem = self._connect()
        problems = [text for text in all_gather_object(problem) if text]
        if problems:
            self._close()
            text = (
                'the processes cannot connect to the first one to watch each other '
                f'({problems[0]}): if one dies, the others may wait for it.'
            )
            print_log(text, logger='current', level=logging.WARNING)
        elif hasattr(os, 'register_at_fork'):  # not on Windows
            os.register_at_fork(after_in_child=self._close)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def leave(self, error: BaseException | None = None) -> None:
        """Ends the watch, by an error for all processes."""
        # What was on its way to a process that has died fails, too, maybe before it
        # is known why.
        broken = self._peers and error is not None and _is_of_network(error)
        if broken and self._lost.wait(_GRACE):
            self._stop()
        if error is None and self.rank == 0:
            self._watcher.join()
        self._left.set()
        self._tell(_BYE if error is None else self._words(self.rank, error))
        self._watcher.join()
        self._close()

    # ---------------------------------------------------------------------- connecting

    def _connect(self) -> str:
        """Connects to the first process, or all to it; returns what went wrong."""
        server = _serve() if self.rank == 0 else None
        names = [os.environ.get('MASTER_ADDR'), socket.gethostname()]
        port = server.getsockname()[1] if server else 0
        message = [(names, port, secrets.token_hex(16))]
        broadcast_object_list(message)
        names, port, token = message[0]
        try:
            if server:
                with server:
                    self._accept(server, token)
            else:
                self._peers[0] = self._reach(names, port, token)
        except OSError as error:
            return str(error)
        for peer in self._peers.values():
            peer.settimeout(None)
            _probe(peer)
        return ''

    def _accept(self, server: socket.socket, token: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while len(self._peers) < self.world_size - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            peer, _ = server.accept()
            peer.settimeout(5)
            with contextlib.suppress(OSError):
                greeting = _receive(peer, len(token) + 8)
                if hmac.compare_digest(greeting[: len(token)], token.encode()):
                    peer.sendall(token.encode())
                    self._peers[int(greeting[len(token) :])] = peer
                    continue
            peer.close()  # a stranger

    def _reach(self, names: list[str | None], port: int, token: str) -> socket.socket:
        problem = OSError('no address')
        for name in names:
            if name is None:
                continue
            try:
                peer = socket.create_connection((name, port), timeout=_PATIENCE / 3)
                peer.sendall(f'{token}{self.rank:08d}'.encode())
                if _receive(peer, len(token)) == token.encode():
                    return peer
                problem = OSError(f'{name} is another machine')
                peer.close()
            except OSError as error:
                problem = error
        raise problem

    # ------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    words = _last_words(self._peers[key.data])
                    if self._left.is_set():
                        return
                    if words != _BYE:
                        self._lose(words or self._words(key.data))
                        return
                    selector.unregister(key.fileobj)

    def _lose(self, words: bytes) -> None:
        rank, _, reason = words.decode(errors='replace').partition('\n')
        how = f'stopped ({reason})' if reason else 'died without a word'
        self._news = (
            f'process {rank} of {self.world_size} {how}, so process {self.rank} stops, '
            'too: see what that one printed, and start all of them again.'
        )
        if self.rank == 0:
            self._tell(words)
        self._lost.set()
        if not self._left.wait(_GRACE):
            self._stop()

    def _stop(self) -> NoReturn:
        # At once, since the other thread may hang in the network.
        with self._stopping:
            print(f'error: {self._news}', file=sys.stderr, flush=True)
            os._exit(1)

    @staticmethod
    def _words(rank: int, error: BaseException | None = None) -> bytes:
        text = '' if error is None else f'{type(error).__name__}: {error}'
        return f'{rank}\n{" ".join(text.split())[:300]}'.encode()

    def _tell(self, words: bytes) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # it is gone
                peer.sendall(words)
                peer.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        # In a worker that is forked, too, which would keep the connections alive.
        for peer in self._peers.values():
            peer.close()
        self._peers = {}


def _serve() -> socket.socket:
    try:
        family = socket.AF_INET6
        return socket.create_server(('', 0), family=family, dualstack_ipv6=True)
    except (OSError, ValueError):  # a machine without IPv6
        return socket.create_server(('', 0))


def _probe(peer: socket.socket) -> None:
    """Lets the system notice the loss of a machine after three minutes."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('IDLE', 60), ('INTVL', 15), ('CNT', 8)):
        option = getattr(socket, f'TCP_KEEP{name}', None)  # not on every system
        if option is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)


def _receive(peer: socket.socket, size: int) -> bytes:
    """So many bytes, or less if there are no more."""
    data = b''
    while len(data) < size:
        more = peer.recv(size - len(data))
        if not more:
            break
        data += more
    return data


def _last_words(peer: socket.socket) -> bytes:
    """What a process has said before its end, which has come."""
    try:
        return _receive(peer, 2000)
    except OSError:
        return b''


def _is_of_network(error: BaseException) -> bool:
    return isinstance(error, torch.distributed.DistError) or 'gloo' in str(error)


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
