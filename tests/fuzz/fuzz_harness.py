"""Runs a case in this process, and judges how it ended and what it left."""

from __future__ import annotations

import gc
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import re
import resource
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import mmengine.config.config
import mmengine.runner.runner
import numpy as np
import torch
from fuzz_case import Case
from fuzz_project import fill
from mmdet.models.detectors.base import BaseDetector
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from mmpretrain.models.classifiers import ImageClassifier

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
# A case that runs is not run to its end: after so many passes there is nothing to find.
PASSES = 30
LONGEST = 1500
MEMORY = 6 * 2**30

# How tools start other processes, which do more than a test should.
_STARTED = {
    'bootstrap.py': [(subprocess, 'run')],
    'coverage.py': [(multiprocessing, 'get_context')],
}


class Enough(BaseException):
    """The tool computes, and what it was given is no mistake to it."""


def _enough(*args: Any, **kwargs: Any) -> None:
    raise Enough


@dataclass
class Outcome:
    """How a tool ended.

    Attributes:
        status: the exit status, ``'enough'`` or ``'traceback'``.
        err: what it wrote to stderr.
        passes: through the model.
        details: the traceback.
        ours: whether it ends in this package's own code.
    """

    status: Any
    err: str
    passes: int
    details: str = ''
    ours: bool = False


def run(case: Case, project: Path, here: Path) -> Outcome:
    """Runs a case in its own folder."""
    for name, text in case.files.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fill(text, project, here))
    if case.prepare is not None:
        case.prepare(project, here)
    argv = [fill(word, project, here) for word in case.argv]
    out, err = io.StringIO(), io.StringIO()
    counted = [0]
    with ExitStack() as stack:
        stack.enter_context(_as_it_was())
        stack.enter_context(_quick(counted))
        stack.enter_context(mock.patch.object(sys, 'argv', [case.tool, *argv]))
        for module, name in _STARTED.get(case.tool, ()):
            stack.enter_context(mock.patch.object(module, name, _enough))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        os.chdir(here)
        status: Any = 0
        details, ours = '', False
        try:
            runpy.run_path(str(TOOLS / case.tool), run_name='__main__')
        except SystemExit as error:
            status = error.code or 0
        except Enough:
            status = 'enough'
        except Exception as error:
            status, details = 'traceback', traceback.format_exc()
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            ours = str(TOOLS.parent / 'mmrobust') in last or str(TOOLS) in last
    return Outcome(status, err.getvalue(), counted[0], details, ours)


@contextmanager
def _quick(counted: list[int]) -> Iterator[None]:
    """Without what takes long and is not the tools' own."""

    def counting(forward: Any) -> Any:
        def count(self: Any, *args: Any, **kwargs: Any) -> Any:
            counted[0] += 1
            if counted[0] > PASSES:
                raise Enough
            return forward(self, *args, **kwargs)

        return count

    with ExitStack() as stack:
        for model in (BaseDetector, ImageClassifier):
            stack.enter_context(
                mock.patch.object(model, 'forward', counting(model.forward))
            )
        stack.enter_context(
            mock.patch.object(
                mmengine.config.config, 'FormatCode', lambda text, **_: (text, True)
            )
        )
        stack.enter_context(
            mock.patch.object(mmengine.runner.runner, 'collect_env', dict)
        )
        stack.enter_context(mock.patch.object(gc, 'collect', int))
        yield


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Everything that a run changes in its process is changed back."""
    folder, environment = os.getcwd(), dict(os.environ)
    os.environ['LOCAL_RANK'] = '0'
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    numpy_state, random_state = np.random.get_state(), random.getstate()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    # Something enormous is to fail, not to take the machine down.
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
    scopes = dict(DefaultScope._instance_dict)
    level = logging.root.level
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        torch.set_rng_state(generator)
        torch.use_deterministic_algorithms(False)
        torch.set_grad_enabled(True)
        np.random.set_state(numpy_state)
        random.setstate(random_state)
        logging.root.setLevel(level)
        for logger in MMLogger._instance_dict.values():
            for handler in list(logger.handlers):
                handler.close()
                logger.removeHandler(handler)
        for kind in (MMLogger, MessageHub, Visualizer):
            kind._instance_dict.clear()
        for kind in Visualizer.__subclasses__():
            kind._instance_dict.clear()
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(scopes)


def ending(outcome: Outcome) -> str:
    """How a case ended, in words."""
    if outcome.status == 2:
        return 'refused after some passes' if outcome.passes else 'refused at once'
    ends = {0: 'done', 'enough': 'computing', 'traceback': 'foreign error'}
    return ends.get(outcome.status, 'wrong')


def complaints(case: Case, outcome: Outcome, project: Path, here: Path) -> list[str]:
    """What is wrong with how a case ended; nothing if all is well."""
    found = []
    if outcome.status == 'traceback':
        if not outcome.err.startswith('error while ') or outcome.ours:
            found.append(f'ended with a traceback:\n{outcome.details}')
    elif outcome.status == 2:
        known = [fill(each, project, here) for each in case.culprits]
        found += _of_message(outcome.err, known)
    elif outcome.status not in (0, 'enough'):
        found.append(f'ended with status {outcome.status!r}')
    elif case.fails:
        found.append(f'ended as if nothing were wrong ({outcome.status})')
    return found + _of_files(here) + _of_project(project)


def _of_message(err: str, culprits: list[str]) -> list[str]:
    found = []
    lines = err.splitlines()
    if len(lines) != 1 or not err.endswith('\n'):
        found.append(f'wrote {len(lines)} lines and not one:\n{err[-3000:]}')
    text = lines[-1] if lines else ''
    if not text.startswith('error: '):
        found.append(f'does not begin with "error: ": {text}')
    if not text.endswith(('.', '?')):
        found.append(f'is no sentence: {text}')
    if len(text) > LONGEST:
        found.append(f'is {len(text)} characters long: {text[:300]}')
    for bad in ('Traceback', 'object at 0x', ' at 0x', '.. ', '??'):
        if bad in text.replace('...', ''):
            found.append(f'has {bad!r}: {text}')
    if not re.search(r'\w{2}', text.removeprefix('error: ')):
        found.append(f'says nothing: {text}')
    squeezed = ' '.join(text.lower().split())
    names = [' '.join(each.lower().split()) for each in culprits]
    if names and not any(name in squeezed for name in names):
        found.append(f'names none of {culprits}: {text}')
    return found


def _of_project(project: Path) -> list[str]:
    """What a case should only have read, put back for the next one."""
    found = []
    for kept in _copy_of(project).rglob('*'):
        path = project / kept.relative_to(_copy_of(project))
        if not kept.is_file() or kept.is_symlink():
            continue
        if path.is_file() and path.stat().st_mtime_ns == kept.stat().st_mtime_ns:
            continue
        found.append(f'overwrote {path.name}')
        shutil.copy2(kept, path)
    return found


def keep(project: Path) -> Path:
    """Puts a copy of the project beside it."""
    shutil.copytree(project, _copy_of(project), symlinks=True)
    return project


def _copy_of(project: Path) -> Path:
    return project.with_name(f'{project.name}-kept')


def _of_files(here: Path) -> list[str]:
    """Results that are half written, and what should have been removed."""
    found = []
    for path in here.rglob('*'):
        given = 'given' in path.relative_to(here).parts
        if given or not path.is_file() or path.is_symlink():
            continue
        name = str(path.relative_to(here))
        if path.name.startswith('.') or '.tmp' in path.name or path.suffix == '.part':
            found.append(f'left {name} behind')
            continue
        try:
            _read(path)
        except Exception as error:
            found.append(f'left {name} half written ({error})')
    return found


def _read(path: Path) -> None:
    """Raises if a result is not whole."""
    if path.suffix == '.json' and 'vis_data' not in path.parts:
        json.loads(path.read_text(encoding='utf-8'))
    elif path.suffix == '.html':
        assert path.read_text(encoding='utf-8').rstrip().endswith('</html>'), 'cut'
    elif path.suffix == '.md':
        assert path.read_text(encoding='utf-8').endswith('\n'), 'cut'
    elif path.suffix == '.pth':
        torch.load(path, weights_only=False)
    elif path.suffix == '.pkl':
        pickle.loads(path.read_bytes())
    elif path.suffix == '.npz':
        np.load(path).close()
