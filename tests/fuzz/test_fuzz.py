"""Whatever a user gives the tools, they work or say what is wrong.

Each case breaks a command line, a config, the data or a checkpoint, and runs a tool in
this process. It has to work, or to end with one sentence and status 2, or with somebody
else's error behind a line that says what was going on; never with half a result.
``pytest tests/fuzz -k 'configs-17]'`` repeats a case. A longer hunt:
``pytest tests/fuzz --fuzz-cases 5000 --fuzz-seed 1``.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import logging
import os
import random
import resource
import runpy
import sys
import traceback
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import mmengine.runner.runner
import numpy as np
import pytest
import torch
from mmdet.models.detectors.base import BaseDetector
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from mmpretrain.models.classifiers import ImageClassifier

import projects
from projects import DAMAGED, Source, config_text

ROOT = Path(__file__).resolve().parents[2]
CASES = 100  # without --fuzz-cases
# After so many passes a case has shown that it works.
PASSES, LONGEST, MEMORY = 30, 1500, 6 * 2**30


@dataclass
class Case:
    """A tool, its arguments, and files by path in the case's folder.

    Attributes:
        culprits: one of them has to be in a sentence; none are known if empty.
        fails: whether success would be a mistake.
    """

    tool: str
    argv: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    culprits: tuple[str, ...] = ()
    fails: bool = False


@dataclass
class Outcome:
    """Exit status, ``'enough'`` or the traceback; stderr; whether the error is ours."""

    status: Any
    err: str
    ours: bool = False


# -------------------------------------------------------------------------- the cases

PLAIN_WORDS = """
x -1 0 0.5 1e400 nan inf 4/0 é漢字 None True [] {} - 4, %s {x} $HOME pgd fgsm cwa
autoattack ensemble square linf l2 4 4/255 2 1000000 next free cwat paper resnet50 none
input fast standard apgd-t:n_iter=x square:n_queries=0 pytorch coco/bbox_mAP
accuracy/top1 cpu imagenet 999999999999999999999
"""
WORDS = ('', ' ', 'a b', "it's", 'x' * 5000, *PLAIN_WORDS.split())
PLAIN_PATHS = """
gone gone/gone.pth PROJECT/file PROJECT/loop PROJECT/data PROJECT/config.py . /dev/null
PROJECT/text.pth PROJECT/truncated.pth PROJECT/data/annotations.json -x ::
mmdet::fcos/gone.py nopackage::x/y.py http:// https://127.0.0.1:9/x.pth nowhere://x
"""
PATHS = ('', ' ', 'x' * 300, *PLAIN_PATHS.split())
VALUES = (
    *(None, True, '', 'x', '4/255', '-4/255', 'total'),
    *(-1, 0, 0.5, 10**400, -(10**15), 1e308),
    *map(Source, ("float('nan')", "float('inf')", 'len', 'object()')),
    *([], [None], ['x'], [{}], ((),), {}, {'x': 1}, {1: 2}, {'_delete_': True}),
    *({'type': 'x'}, {'type': None}, {'type': 'ResNet'}),
)
CONFIG, GOOD = 'PROJECT/config.py', 'PROJECT/good.pth'
CLASSIFIER = ['PROJECT/classifier.py', 'PROJECT/classifier.pth']
FAST = ['--attack', 'pgd', '--num-steps', '1', '--num-images', '2']
# Arguments that work.
BASES = {
    'train.py': [
        [CONFIG],
        ['PROJECT/standard.py'],
        ['PROJECT/standard.py', '--robust', 'free'],
        ['PROJECT/standard.py', '--robust', 'pgd', '--dump', 'robust.py'],
        [CLASSIFIER[0]],
    ],
    'test.py': [
        [CONFIG, GOOD],
        [CONFIG, GOOD, *FAST],
        ['PROJECT/standard.py', GOOD],
        CLASSIFIER,
        [*CLASSIFIER, '--attack', 'autoattack', '--num-images', '2'],
    ],
    'transfer.py': [[CLASSIFIER[0], '--checkpoints', f'0={CLASSIFIER[1]}']],
    'transfer_matrix.py': [[f'a={CONFIG}:{GOOD}', '--num-images', '2']],
    'convert_backbone.py': [
        ['PROJECT/resnet18.pth', 'out.pth', '--normalization', 'imagenet']
    ],
    'demo.py': [['--row', 'standard', '--cfg-options', 'train_cfg.max_iters=1']],
}
_SLOW = {'-h', '--help', '--show', '--seeds', '--lr'}  # or not for a test


def options_of(tool):
    """The options of a tool, as its parser knows them."""
    found = []

    def caught(self, *args):
        found.extend(name for a in self._actions for name in a.option_strings)
        raise KeyboardInterrupt

    with ExitStack() as stack:
        for name in ('parse_args', 'parse_known_args'):
            stack.enter_context(
                mock.patch.object(argparse.ArgumentParser, name, caught)
            )
        stack.enter_context(pytest.raises(KeyboardInterrupt))
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    return sorted(set(found) - _SLOW)


OPTIONS = {}


def misspelt(rng, word):
    """The word with a letter too many or too few."""
    place = rng.randrange(max(len(word), 1))
    return word[:place] + rng.choice(('x', '')) + word[place + rng.randrange(2) :]


def work(tool, argv):
    """The arguments with a work dir in the case's folder, if the tool has one."""
    return argv if tool == 'convert_backbone.py' else [*argv, '--work-dir', 'HERE/work']


def command(rng, number, project):
    """Options with nonsense, without a value, misspelt; paths to nothing."""
    tool = rng.choice(('train.py', 'test.py', 'test.py', *BASES))
    base = work(tool, list(rng.choice(BASES[tool])))
    if number % 4 == 3:
        places = [i for i, word in enumerate(base) if 'PROJECT' in word]
        if places:
            base[rng.choice(places)] = rng.choice(PATHS)
        return Case(tool, base)
    if tool not in OPTIONS:
        OPTIONS[tool] = options_of(tool)
    for option in rng.sample(OPTIONS[tool], rng.choice((1, 1, 2))):
        option = misspelt(rng, option) if rng.random() < 0.1 else option
        words = [rng.choice(WORDS + PATHS) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
        base += [option, *words]
    return Case(tool, base)


def places(node, path=()):
    """Where anything stands in a config or in annotations."""
    found = [path] if path else []
    pairs = node.items() if isinstance(node, dict) else ()
    for key, value in enumerate(node) if isinstance(node, list) else pairs:
        found += places(value, (*path, key))
    return found


def mutate(rng, root, values):
    """Makes one value wrong; returns the first of the keys that lead there."""
    path = rng.choice(places(root))
    node = root
    for key in path[:-1]:
        node = node[key]
    key, kind = path[-1], rng.choice(('value', 'value', 'value', 'gone', 'renamed'))
    if kind == 'value':
        node[key] = deepcopy(rng.choice(values))
    elif kind == 'renamed' and isinstance(key, str):
        node[misspelt(rng, key)] = node.pop(key)
    else:
        del node[key]
    return str(path[0])


NO_CONFIGS = (
    *('', 'model = dict(type=', 'model = dict()\n  x = 1\n', '\x00\x01', 'no config\n'),
    *("_base_ = './mine.py'\nmodel = dict()\n", '_base_ = 5\nmodel = dict()\n'),
    *("_base_ = 'gone.py'\nmodel = dict()\n", "_base_ = 'mmdet::gone/gone.py'\n"),
    *('model = unknown\n', 'raise RuntimeError("x")\n', 'import sys\nsys.exit(3)\n'),
    *('assert False\n', 'import nonexistent_package\nmodel = dict()\n', 'model = 5\n'),
    *('model = None\n', 'model = [dict()]\n', 'import os\nmodel = os\n'),
    *("model = dict(type='{{_base_.gone}}')\n", 'model = ' + '(' * 5000 + '\n'),
    'from mmengine.config import read_base\nwith read_base():\n    from .x import *\n',
)


def config(rng, number, project):
    """A config with one or two wrong settings, or none at all."""
    tool = rng.choice(('train.py', 'test.py'))
    argv = ['HERE/given/mine.py', *([GOOD] if tool == 'test.py' else [])]
    if number % 4 == 3:
        text = NO_CONFIGS[number // 4 % len(NO_CONFIGS)]
        files = {'given/mine.py': text.encode()}
        return Case(tool, work(tool, argv), files, ('mine.py', 'model'), fails=True)
    cfg = projects.detector(project)
    for _ in range(rng.choice((1, 1, 2))):
        mutate(rng, cfg, VALUES)
    return Case(tool, work(tool, argv), {'given/mine.py': config_text(cfg).encode()})


def data(rng, number, project):
    """Annotations with a wrong value, a damaged file of annotations, or an image."""
    tool = rng.choice(('train.py', 'test.py'))
    argv = [CONFIG] if tool == 'train.py' else [CONFIG, GOOD, *FAST[:4]]
    argv = [*work(tool, argv), '--cfg-options', 'data_root=HERE/given/']
    folder = project / 'data'
    files = {
        f'given/{path.relative_to(folder)}': path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }
    case = Case(tool, argv, files)
    whole = files['given/annotations.json']
    if number % 2 == 0:
        content = json.loads(whole)
        bad = [v for v in VALUES if not isinstance(v, (Source, tuple)) and v != {1: 2}]
        for _ in range(rng.choice((1, 1, 2))):
            mutate(rng, content, tuple(bad))
        files['given/annotations.json'] = json.dumps(content).encode()
    elif number % 4 == 1:
        cut = whole[: rng.randrange(len(whole) - 1)]
        kinds = (cut, b'', bytes(range(256)), b'prose', whole * 2, b'[' * 100000)
        files['given/annotations.json'] = rng.choice(kinds)
        case.fails = True
    else:
        name = rng.choice([name for name in files if 'images' in name])
        image = files[name]
        kinds = (b'', image[: len(image) // 2], image[:20], b'no image', b'\0' * 500)
        files[name] = rng.choice(kinds)
        case.fails = True
    return case


WITH_CHECKPOINT = (
    f'test.py {CONFIG} PATH',
    f'test.py {CONFIG} PATH --attack fgsm --check-images 0',
    f'train.py {CONFIG} --resume PATH',
    f'train.py {CONFIG} --cfg-options load_from=PATH',
    f'train.py {CONFIG} --cfg-options model.backbone.init_cfg.type=Pretrained '
    'model.backbone.init_cfg.checkpoint=PATH',
    'convert_backbone.py PATH out.pth --normalization imagenet',
    f'transfer.py {CONFIG} --checkpoints 4=PATH',
    f'transfer_matrix.py a={CONFIG}:PATH --num-images 2',
)


def checkpoint(rng, number, project):
    """A checkpoint that is none, or not of this model, given to any tool."""
    kind = DAMAGED[number % len(DAMAGED)]
    words = rng.choice(WITH_CHECKPOINT).replace('PATH', f'PROJECT/{kind}.pth')
    tool, *argv = words.split()
    return Case(tool, work(tool, argv), culprits=(f'{kind}.pth',))


KINDS = {
    'commands': (command, 40),
    'configs': (config, 30),
    'data': (data, 18),
    'checkpoints': (checkpoint, 12),
}


def pytest_generate_tests(metafunc):
    if 'drawn' in metafunc.fixturenames:
        option = metafunc.config.getoption
        count, seed = option('fuzz_cases') or CASES, option('fuzz_seed')
        drawn = [
            (kind, number, seed)
            for kind, (_, share) in KINDS.items()
            for number in range(count * share // 100)
        ]
        names = [f'{kind}-{number}' for kind, number, _ in drawn]
        metafunc.parametrize('drawn', drawn, ids=names)


# ------------------------------------------------------------------------ running them


class Enough(BaseException):
    """The tool computes, and what it was given is no mistake to it."""


def run(case, project, here):
    """Runs a case in its own folder."""
    for name, content in case.files.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    argv = [
        word.replace('PROJECT', str(project)).replace('HERE', str(here))
        for word in case.argv
    ]
    err = io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(_as_it_was())
        stack.enter_context(_quick())
        stack.enter_context(mock.patch.object(sys, 'argv', [case.tool, *argv]))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(err))
        os.chdir(here)
        status, ours = 0, False
        try:
            runpy.run_path(str(ROOT / 'tools' / case.tool), run_name='__main__')
        except SystemExit as error:
            status = error.code or 0
        except Enough:
            status = 'enough'
        except Exception as error:
            status = traceback.format_exc()
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            ours = last.startswith((str(ROOT / 'mmrobust'), str(ROOT / 'tools')))
    return Outcome(status, err.getvalue(), ours)


@contextmanager
def _quick():
    """Leaves out what takes long and is not the tools' own."""
    passes = 0

    def counting(forward):
        def count(self, *args, **kwargs):
            nonlocal passes
            passes += 1
            if passes > PASSES:
                raise Enough
            return forward(self, *args, **kwargs)

        return count

    with ExitStack() as stack:
        for owner, name, value in (
            (BaseDetector, 'forward', counting(BaseDetector.forward)),
            (ImageClassifier, 'forward', counting(ImageClassifier.forward)),
            (mmengine.runner.runner, 'collect_env', dict),
            (gc, 'collect', int),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


@contextmanager
def _as_it_was():
    """Changes back everything that a run changes in its process."""
    folder, scopes = os.getcwd(), dict(DefaultScope._instance_dict)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    limits, level = resource.getrlimit(resource.RLIMIT_AS), logging.root.level
    size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    # Something enormous is to fail, not to take the machine down.
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
    try:
        with mock.patch.dict(os.environ, LOCAL_RANK='0'):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        os.chdir(folder)
        torch.use_deterministic_algorithms(False)
        torch.set_grad_enabled(True)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        logging.root.setLevel(level)
        for logger in MMLogger._instance_dict.values():
            for handler in list(logger.handlers):
                handler.close()
                logger.removeHandler(handler)
        for kind in (MMLogger, MessageHub, Visualizer, *Visualizer.__subclasses__()):
            kind._instance_dict.clear()
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(scopes)


def complaints(case, outcome, here):
    """Says what is wrong with how a case ended."""
    found, err = [], outcome.err
    if outcome.status in (0, 'enough'):
        found += ['ended as if nothing were wrong'] * case.fails
    elif outcome.status != 2:
        if outcome.ours or not err.startswith('error while '):
            found.append(f'ended with {outcome.status}')
    else:
        bad = [each for each in ('Traceback', ' at 0x') if each in err]
        found += [f'has {each!r}: {err}' for each in bad]
        if err.count('\n') != 1 or not err.startswith('error: '):
            found.append(f'is not one sentence: {err}')
        if not err.endswith(('.\n', '?\n')) or len(err) > LONGEST:
            found.append(f'does not end: {err[-LONGEST:]}')
        if case.culprits and not any(each in err for each in case.culprits):
            found.append(f'names none of {case.culprits}: {err}')
    for path in here.rglob('*'):
        if 'given' in path.relative_to(here).parts or not path.is_file():
            continue
        if path.name.startswith('.') or '.tmp' in path.name:
            found.append(f'left {path.name} behind')
        elif path.suffix == '.json' and 'vis_data' not in path.parts:
            json.loads(path.read_text(encoding='utf-8'))
        elif path.suffix == '.pth':
            torch.load(path, weights_only=False)
    return found


# --------------------------------------------------------------------------- the tests


def test_case(drawn, project, tmp_path):
    kind, number, seed = drawn
    case = KINDS[kind][0](Random(f'{seed} {kind} {number}'), number, project)
    kept = {path: path.stat().st_mtime_ns for path in project.rglob('*.p*')}
    found = complaints(case, run(case, project, tmp_path), tmp_path)
    changed = [path for path, time in kept.items() if path.stat().st_mtime_ns != time]
    assert not changed, f'{case.tool} {case.argv} overwrote {changed}'
    assert not found, '\n'.join([f'{case.tool} {case.argv}', *found])


@pytest.mark.parametrize(
    ('tool', 'argv'), [(tool, argv) for tool, all_ in BASES.items() for argv in all_]
)
def test_what_the_cases_break_is_whole(tool, argv, project, tmp_path):
    """Otherwise every case would fail for a reason of its own, and prove nothing."""
    case = Case(tool, work(tool, argv))
    outcome = run(case, project, tmp_path)
    assert outcome.status in (0, 'enough'), outcome.err
    assert not complaints(case, outcome, tmp_path)


@pytest.mark.parametrize(
    ('outcome', 'complaint'),
    [
        (Outcome('Traceback', ''), 'ended with Traceback'),
        (Outcome('Traceback', 'error while testing:\n', ours=True), 'ended with'),
        (Outcome(1, ''), 'ended with 1'),
        (Outcome(2, 'warning\nerror: x is wrong.\n'), 'is not one sentence'),
        (Outcome(2, 'error: x is wrong\n'), 'does not end'),
        (Outcome(2, 'error: x is <object at 0x7f>.\n'), "has ' at 0x'"),
        (Outcome(2, 'error: y is wrong.\n'), 'names none of'),
        (Outcome(0, ''), 'as if nothing were wrong'),
        (Outcome(2, 'error: x is wrong.\n'), None),
        (Outcome('Traceback', 'error while testing:\n'), None),
    ],
)
def test_the_judge(tmp_path, outcome, complaint):
    found = complaints(Case('test.py', [], {}, ('x is',), True), outcome, tmp_path)
    assert bool(found) == (complaint is not None)
    assert complaint is None or complaint in found[0]
