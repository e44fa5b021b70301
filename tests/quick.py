"""What mmengine does around a run, shortened: it takes longer than many a test's run.

Runners print and save their config, laid out by yapf; datasets collect garbage; a name
like ``mmdet::fcos/x.py`` is looked up in a hundred files, after a look at all packages;
reports read the metadata of installed packages. Every visualizer begins with a figure,
and VOCMetric with processes. Trials and pictures take longer than attacks on tiny
detectors, files longer to the disk than to the next test, and their compression and a
hundred weights of a stored detector longer than its evaluation.
"""

from __future__ import annotations

import gc
import os
from copy import deepcopy
from functools import cache
from importlib.metadata import version
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stored
import torch
from mmengine.fileio import load
from mmengine.utils import is_installed
from mmengine.utils.dl_utils import collect_env
from mmengine.visualization import Visualizer
from mmrobust.evaluation.loops import AttackTestLoop


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Shortens it in this process, until the patch is undone."""
    # What is imported stays: nobody has to look through it, nor copy it after a fork.
    gc.collect()
    gc.freeze()
    patch.setattr(
        'mmengine.config.config.FormatCode', lambda text, **options: (text, True)
    )
    patch.setattr(
        'mmengine.dataset.base_dataset.gc', SimpleNamespace(collect=lambda: 0)
    )
    patch.setattr('mmengine.runner.runner.collect_env', cache(collect_env))
    patch.setattr('mmdet.evaluation.functional.mean_ap.Pool', ThreadPool)
    patch.setattr('os.fsync', lambda handle: None)
    patch.setattr('numpy.savez_compressed', np.savez)
    patch.setattr('torch.load', _read_once(torch.load))
    # Until workers that nobody waits for any more are ended.
    patch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.2)
    patch.setattr(Visualizer, '_initialize_fig', _figure(Visualizer._initialize_fig))
    patch.setattr('mmengine.config.utils.load', cache(load))
    for module in ('config.config', 'utils.package_utils'):
        patch.setattr(f'mmengine.{module}.is_installed', cache(is_installed))
    patch.setattr('mmrobust.compat.stack.version', cache(version))
    patch.setattr(AttackTestLoop, 'default_check_images', 0)
    patch.setattr(AttackTestLoop, 'default_gallery', 0)


def _read_once(stock: Any) -> Any:
    """Checkpoints that :func:`stored.checkpoint` wrote; all other files as ever."""
    found: dict[Any, Any] = {}

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(file, (str, os.PathLike)) or str(file) not in stored.WRITTEN:
            return stock(file, *args, **kwargs)
        key = str(file), os.stat(file).st_mtime_ns
        if key not in found:
            found[key] = stock(file, *args, **kwargs)
        return deepcopy(found[key])

    return load


def _figure(stock: Any) -> Any:
    """Figures of equal settings are one, which every picture clears."""
    figures: dict[str, tuple] = {}

    def figure(own: Visualizer, settings: dict) -> tuple:
        key = str(settings)
        if key not in figures:
            figures[key] = stock(own, settings)
        return figures[key]

    return figure
