"""Measures whole evaluations: what is not passes, two processes, and growth.

    python -m benchmarks.command share CONFIG CHECKPOINT --attack pgd --num-images 128
    python -m benchmarks.command growth

``share`` runs ``tools/test.py`` as it stands on the command line, says where its wall
time goes, and runs it in two processes. ``growth`` runs it on small pictures of digits,
and varies the numbers of pictures, of attacks and of objects; ``--plot`` draws it. A
machine that others use too gives other figures. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from mmrobust.utils.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
TEST = str(ROOT / 'tools' / 'test.py')
# What is varied, and the numbers of pictures, attacks and objects of a picture.
GROWTH: dict[str, list[tuple[int, int, int]]] = {
    'pictures': [(count, 1, 2) for count in (32, 128, 512, 2000)],
    'attacks': [(64, count, 2) for count in (1, 2, 4, 8)],
    'objects of a picture': [(64, 1, count) for count in (1, 4, 16, 64)],
}
# In the order of an evaluation; 'passes' are the network's, losses and selection of
# boxes included, and all others are without those that happen in them.
STAGES = (
    *('start', 'build', 'checks', 'pictures', 'passes', 'attack', 'records'),
    *('metrics', 'analysis', 'report', 'other'),
)


class Stopwatch:
    """Seconds by what is being done; what is inside something is not part of it.

    Args:
        began: what the clock showed when the process was started.
        clock: tells seconds.
    """

    def __init__(self, began: float, clock: Callable[[], float] = time.time) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._doing, self._since, self._clock = ['start'], began, clock

    def _note(self) -> None:
        now = self._clock()
        self.seconds[self._doing[-1]] += now - self._since
        self._since = now

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Counts what happens in the context for a stage."""
        self._note()
        self._doing.append(stage)
        try:
            yield
        finally:
            self._note()
            self._doing.pop()

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Counts all calls of a function for a stage."""
        stock: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.on(stage):
                return stock(*args, **kwargs)

        setattr(owner, name, watched)


# What is watched: class or module, its functions, and the stage that they belong to.
_WATCHED = (
    ('mmrobust.objective:LossOracle', ('value', 'value_and_grad'), 'passes'),
    ('mmrobust.objective:StackedOracle', ('value', 'value_and_grad'), 'passes'),
    ('mmrobust.objective:DetectionOracle', ('value',), 'passes'),
    ('mmrobust.evaluation.attacker:Attacker', ('predict_unseeded',), 'passes'),
    ('mmrobust.evaluation.attacker:Attacker', ('_attack',), 'attack'),
    ('mmrobust.utils.store:StorePart', ('read', 'write'), 'records'),
    ('mmrobust.frame:FramedDataset', ('__getitem__',), 'pictures'),
    ('mmengine.evaluator:Evaluator', ('process', 'evaluate'), 'metrics'),
    ('mmrobust.evaluation.benign_pass:Scores', ('add', 'compute'), 'analysis'),
    ('mmrobust.evaluation.pass_tables:PassTables', ('worst_case', 'write'), 'analysis'),
    ('mmrobust.evaluation.visualization:Gallery', ('draw', 'pictures'), 'report'),
    ('mmrobust.report:RobustnessReport', ('write',), 'report'),
    ('mmrobust.commands.testing', ('build_runner',), 'build'),
    ('mmrobust.evaluation.loops:AttackTestLoop', ('__init__',), 'build'),
    ('mmrobust.evaluation.attack_evaluation:AttackEvaluation', ('_prepare',), 'checks'),
    ('mmrobust.evaluation.attack_evaluation:AttackEvaluation', ('run',), 'other'),
)


def child(out: str, argv: list[str]) -> None:
    """Runs test.py in this process, and writes where its time went."""
    began = os.environ.get('BEGAN')
    watch = Stopwatch(float(began)) if began else Stopwatch(0.0, time.process_time)
    import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
    import torch

    for place, names, stage in _WATCHED:
        for name in names:
            watch.watch(resolve_name(place), name, stage)
    sys.argv = [TEST, *argv]
    try:
        runpy.run_path(TEST, run_name='__main__')
    finally:
        with watch.on('other'):
            status = Path('/proc/self/status').read_text()
        (peak,) = (row.split()[1] for row in status.splitlines() if 'VmHWM' in row)
        found = {'seconds': watch.seconds, 'mebibytes': int(peak) / 1024}
        if os.environ.get('RANK', '0') == '0':
            found['threads'] = torch.get_num_threads()
            Path(out).write_text(json.dumps(found))


def measured(
    argv: Sequence[str], folder: Path, processes: int = 1, clock: str = 'wall'
) -> dict[str, Any]:
    """Runs test.py, and says where the time of its first process went.

    Args:
        argv: of test.py.
        folder: of its results; what an earlier run left there is removed by test.py.
        processes: each with one thread.
        clock: ``'wall'``, or ``'cpu'`` for the process's own time, up to its exit.

    Returns:
        ``seconds`` by stage, ``total``, and ``mebibytes``, the largest resident size of
        the first process.
    """
    command = [sys.executable, '-W', 'ignore']
    own = ['-m', 'benchmarks.command', 'child', str(folder / 'child.json'), *argv]
    own += ['--work-dir', str(folder)]
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone']
        command += [f'--nproc_per_node={processes}']
        own += ['--launcher', 'pytorch']
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    environment = {**os.environ, 'PYTHONPATH': path}
    environment.pop('BEGAN', None)
    if clock == 'wall':
        environment['BEGAN'] = str(time.time())
    if processes > 1:
        environment['OMP_NUM_THREADS'] = '1'
    began = time.time()
    done = subprocess.run(
        [*command, *own], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f'test.py failed:\n{done.stderr[-3000:]}')
    found = json.loads((folder / 'child.json').read_text())
    if clock == 'wall':
        # Until the process is gone, and for a launcher until all are.
        rest = time.time() - began - sum(found['seconds'].values())
        found['seconds']['other'] += rest
    return {**found, 'total': sum(found['seconds'].values())}


def share(argv: Sequence[str], folder: Path) -> Iterator[list[str]]:
    """Where the time of a command goes, alone and in two processes.

    Yields:
        Rows of a table: a head, and one for each number of processes.
    """
    yield ['processes', 'seconds', *STAGES, 'not passes', 'MiB', 'speed-up']
    alone = 0.0
    for processes in (1, 2):
        found = measured(argv, folder / str(processes), processes)
        alone = alone or found['total']
        seconds = [found['seconds'].get(stage, 0.0) for stage in STAGES]
        outside = 1 - found['seconds']['passes'] / found['total']
        yield [
            *(str(processes), f'{found["total"]:.1f}'),
            *(f'{each:.1f}' for each in seconds),
            *(f'{outside:.1%}', f'{found["mebibytes"]:.0f}'),
            f'{alone / found["total"]:.2f}',
        ]


def project(folder: Path, pictures: int, attacks: int, objects: int) -> list[str]:
    """Makes pictures, a detector with random weights and a config.

    Args:
        folder: where they are put.
        pictures: of 96 x 96 pixels, with digits.
        attacks: of one step each, with radii of their own.
        objects: made-up boxes of every picture.

    Returns:
        The arguments of test.py.
    """
    import numpy as np
    import torch
    from mmengine.config import Config
    from mmengine.logging import MMLogger
    from mmengine.registry import MODELS, init_default_scope
    from mmrobust.datasets import make_digits

    make_digits(folder / 'data', num_train=1, num_val=pictures, size=96)
    path = folder / 'data/annotations/instances_val.json'
    truth, rng = json.loads(path.read_text()), np.random.default_rng(0)
    truth['annotations'] = []
    for image in truth['images']:
        sides = rng.integers(16, 49, (objects, 2))
        for side, label in zip(sides, rng.integers(0, 10, objects), strict=True):
            box = [*map(int, rng.integers(0, 97 - side)), *map(int, side)]
            about = {'image_id': image['id'], 'category_id': int(label), 'iscrowd': 0}
            about.update(id=len(truth['annotations']) + 1, bbox=box)
            truth['annotations'].append({**about, 'area': box[2] * box[3]})
    path.write_text(json.dumps(truth))
    MMLogger.get_instance('mmengine', log_level='WARNING')
    # A small network, as its passes are not what is looked at. Random weights are sure
    # of nothing, and all boxes that may be left are to be.
    small = {
        'backbone': {'base_channels': 8},
        'neck': {'in_channels': [16, 32], 'out_channels': 16},
        'bbox_head': {'in_channels': 16, 'feat_channels': 16, 'stacked_convs': 1},
        'test_cfg': {'score_thr': 0.0},
    }
    base = Config.fromfile(ROOT / 'configs/demo/standard_fcos.py')
    base.merge_from_dict({'model': small})
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(base.model))
    model.init_weights()
    torch.save({'state_dict': model.state_dict()}, folder / 'random.pth')
    many = {
        f'fgsm-{place}': {'type': 'mmrobust.PGD', 'eps': 1 + place, 'num_steps': 1}
        for place in range(attacks)
    }
    loop = {'_delete_': True, 'type': 'mmrobust.AttackTestLoop', 'attacks': many}
    loader = {'dataset': {'data_root': str(folder / 'data'), 'indices': None}}
    settings = {
        '_base_': str(ROOT / 'configs/demo/standard_fcos.py'),
        'test_dataloader': loader,
        'test_cfg': loop,
        'model': small,
    }
    text = ''.join(f'{key} = {value!r}\n' for key, value in settings.items())
    (folder / 'config.py').write_text(text)
    return [str(folder / 'config.py'), str(folder / 'random.pth')]


def growth(
    varied: Sequence[str],
    folder: Path,
    clock: str = 'wall',
    known: Sequence[dict[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """Measures with growing numbers, one row after the other; not those known."""
    done = {(row['what'], row['number']) for row in known}
    for what in varied:
        for numbers in GROWTH[what]:
            if (what, numbers[list(GROWTH).index(what)]) in done:
                continue
            place = folder / '-'.join(map(str, numbers))
            place.mkdir(parents=True, exist_ok=True)
            found = measured(project(place, *numbers), place, clock=clock)
            seconds = found['seconds']
            yield {
                'what': what,
                'number': numbers[list(GROWTH).index(what)],
                'clock': clock,
                **{stage: seconds.get(stage, 0.0) for stage in STAGES},
                # What is done once, whatever there is to do.
                'once': seconds['start'] + seconds['build'] + seconds['checks'],
                'seconds': found['total'],
                'mebibytes': found['mebibytes'],
            }


def rows_of(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Lays figures out; the last column is what one more of a row's number takes.

    A straight line has the same there in each row.
    """
    table = []
    for before, row in zip([None, *found], found, strict=False):
        rest = row['seconds'] - row['passes'] - row['once']
        more = ['', '']
        if before and before['what'] == row['what']:
            step = row['number'] - before['number']
            earlier = before['seconds'] - before['passes'] - before['once']
            more = [
                f'{1000 * (rest - earlier) / step:.1f}',
                f'{1024 * (row["mebibytes"] - before["mebibytes"]) / step:.0f}',
            ]
        figures = (row['seconds'], row['passes'], row['once'], rest)
        texts = [f'{each:.1f}' for each in figures]
        memory = f'{row["mebibytes"]:.0f}'
        table.append([row['what'], str(row['number']), *texts, memory, *more])
    return table


def plot(found: Sequence[dict[str, Any]], path: str) -> None:
    """Draws seconds and memory against each number."""
    import matplotlib

    matplotlib.use('svg')
    matplotlib.rcParams['svg.hashsalt'] = 'mmrobust'
    matplotlib.rcParams['svg.fonttype'] = 'none'  # text stays text
    from matplotlib import pyplot

    varied = list(dict.fromkeys(row['what'] for row in found))
    size = (3 * len(varied), 4.2)
    figure, axes = pyplot.subplots(2, len(varied), figsize=size, squeeze=False)
    for what, (above, below) in zip(varied, axes.T, strict=True):
        own = [row for row in found if row['what'] == what]
        x = [row['number'] for row in own]
        passes = [row['passes'] for row in own]
        rest = [row['seconds'] - row['passes'] - row['once'] for row in own]
        above.plot(x, passes, 'o-', label='passes')
        above.plot(x, rest, 's--', label='all else')
        below.plot(x, [row['mebibytes'] for row in own], 'o-')
        below.set_xlabel(what)
        above.set_ylim(0, 1.1 * max(passes + rest))
        below.set_ylim(0, 1.1 * max(row['mebibytes'] for row in own))
    axes[0, 0].set_ylabel('seconds')
    axes[1, 0].set_ylabel('peak memory, MiB')
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None})


def main() -> None:
    """Measures, and prints a Markdown table."""
    if sys.argv[1:2] == ['child']:
        child(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    what = parser.add_subparsers(dest='what', required=True)
    what.add_parser('share', help='of the command line of tools/test.py that follows')
    growing = what.add_parser('growth')
    growing.add_argument('--vary', nargs='+', choices=list(GROWTH), default=GROWTH)
    growing.add_argument('--clock', choices=['wall', 'cpu'], default='wall')
    growing.add_argument('--plot', metavar='FILE', help='an SVG')
    growing.add_argument(
        '--json',
        metavar='FILE',
        help='rewritten after every row; those it has are kept',
    )
    args, argv = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.what == 'share':
            for number, cells in enumerate(share(argv, folder)):
                print(f'| {" | ".join(cells)} |', flush=True)
                if not number:
                    print('|' + ' --- |' * len(cells), flush=True)
            return
        found: list[dict[str, Any]] = []
        if args.json and Path(args.json).exists():
            found = json.loads(Path(args.json).read_text())
            found = [row for row in found if row.get('clock') == args.clock]
        for row in growth(args.vary, folder, args.clock, found):
            found.append(row)
            if args.json:
                write_atomically(args.json, json.dumps(found, indent=1))
    head = ['varied', 'number', 'seconds', 'passes', 'once', 'all else', 'MiB']
    head += ['all else: one more, ms', 'memory: one more, KiB']
    for cells in [head, ['---'] * len(head), *rows_of(found)]:
        print(f'| {" | ".join(cells)} |')
    if args.plot:
        plot(found, args.plot)


if __name__ == '__main__':
    main()
