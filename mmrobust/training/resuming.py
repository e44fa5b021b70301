"""Checkpoints that are whole, and which of them training goes on from."""

from __future__ import annotations

import logging
import os
from glob import glob
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..errors import ConfigError
from ..weights import read_checkpoint


def save_in_one_piece(runner: Any) -> None:
    """Makes ``runner.save_checkpoint`` write a file that is whole or not there at all.

    mmengine writes into the file itself; killed meanwhile, it leaves a part of it,
    where the previous one of that name may have been. Only local files are covered.
    """
    stock = runner.save_checkpoint

    def save(out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        if '://' in out_dir or any(args[:1]) or kwargs.get('backend_args'):
            stock(out_dir, filename, *args, **kwargs)
            return
        partial = os.path.join(out_dir, f'.{filename}.partial')
        stock(out_dir, os.path.basename(partial), *args, **kwargs)
        if is_main_process():
            with open(partial, 'rb+') as file:
                os.fsync(file.fileno())
            os.replace(partial, os.path.join(out_dir, filename))

    runner.save_checkpoint = save


def settle_checkpoint(runner: Runner) -> None:
    """Decides what is resumed, and takes over its seed, before data are sampled.

    mmengine sets the seed of the checkpoint after it has built the data loader, so
    that without a seed in the config the order of the data would be another one.

    Raises:
        ConfigError: if checkpoints were saved and none of them is whole.
    """
    if not runner._resume:
        return
    path = runner._load_from
    checkpoint: dict[str, Any] = {}
    if path is None:
        path, checkpoint = newest_checkpoint(runner.work_dir)
        runner._load_from = path
    elif '://' not in path:
        checkpoint = read_checkpoint(path)
    seed = checkpoint.get('meta', {}).get('seed')
    if seed is not None and seed != runner._randomness_cfg.get('seed'):
        runner._randomness_cfg.update(seed=seed)
        runner.set_randomness(**runner._randomness_cfg)


def newest_checkpoint(work_dir: str) -> tuple[str | None, dict[str, Any]]:
    """The checkpoint that was saved last, or if that is damaged the newest whole one.

    Args:
        work_dir: with mmengine's ``last_checkpoint``, a file with the path.

    Returns:
        The path, or None if nothing was saved, and what it holds if it is a file.

    Raises:
        ConfigError: if none is whole.
    """
    note = os.path.join(work_dir, 'last_checkpoint')
    last = ''
    if os.path.isfile(note):
        with open(note, encoding='utf-8') as file:
            last = file.read().strip()
    if '://' in last:
        return last, {}
    folders = {
        os.path.abspath(work_dir),
        os.path.dirname(os.path.abspath(last or note)),
    }
    others = [path for folder in folders for path in glob(f'{folder}/*.pth')]
    others.sort(key=os.path.getmtime, reverse=True)
    reasons = []
    for path in [last, *others] if last else others:
        try:
            checkpoint = read_checkpoint(path)
        except ConfigError as error:
            reasons.append(str(error))
            continue
        # The best one of a validation has no state of the optimizer.
        if path == last or {'meta', 'optimizer'} <= checkpoint.keys():
            if reasons:
                print_log(
                    f'Training resumes from {path}, the newest whole checkpoint: '
                    + ' '.join(reasons),
                    logger='current',
                    level=logging.WARNING,
                )
            return path, checkpoint
    if reasons or last:
        raise ConfigError(
            f'no checkpoint in {work_dir!r} can be resumed ({" ".join(reasons)}): give '
            'one with --resume FILE, or leave --resume out to start anew.'
        )
    return None, {}
