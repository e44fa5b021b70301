"""Runs the study: does the papers' claims hold with this software, in small?

    python experiments/evidence/run.py --cifar10 data/cifar10
    python experiments/evidence/run.py --cifar10 data/cifar10 --scale full --minutes 25

Without --cifar10 the embedded digits serve as the same two tasks. Interrupted, or
stopped by --minutes, the same command goes on where it was. Ends with the tables of all
runs that are done, in WORK_DIR/evidence.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures as futures
import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from grid import CLAIMS, SCALES, SEEDS, Grid, Run


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    from mmrobust import cli

    parser = cli.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--cifar10', metavar='DIR', help='CIFAR-10 as {train,test}/<class>/*.png or jpg'
    )
    parser.add_argument('--scale', choices=sorted(SCALES), default='small')
    parser.add_argument(
        '--claims',
        nargs='+',
        type=int,
        choices=CLAIMS,
        help='default: those of the scale',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=list(SEEDS))
    parser.add_argument(
        '--jobs',
        type=int,
        default=min(os.cpu_count() or 1, 8),
        help='runs at a time (default: one per core, at most 8)',
    )
    parser.add_argument(
        '--minutes', type=float, help='begin no further run after so many minutes'
    )
    parser.add_argument('--work-dir', help='default: work_dirs/evidence/DATA-SCALE')
    parser.add_argument('--list', action='store_true', help='only name the runs')
    return parser.parse_args()


def main() -> None:
    """Makes the data, does what has not been done, and writes the tables."""
    from mmrobust import cli
    from mmrobust.errors import ConfigError

    args = parse_args()
    for option, least in (('jobs', 1), ('minutes', 0)):
        value = getattr(args, option)
        if value is not None and not least <= value < 1e6:
            raise ConfigError(f'--{option} {value} must be at least {least}.')
    if any(seed < 0 for seed in args.seeds):
        raise ConfigError('--seeds must not be negative.')
    scale = SCALES[args.scale]
    grid = Grid(scale).build(tuple(args.claims or scale.claims), tuple(args.seeds))
    if args.list:
        for run in grid:
            print(run.name, *sorted(run.claims))
        return
    source = 'digits' if args.cifar10 is None else 'cifar10'
    work_dir = Path(args.work_dir or f'work_dirs/evidence/{source}-{args.scale}')
    cli.check_work_dir(str(work_dir))
    work_dir = work_dir.absolute()
    from data import make_data
    from runs import Study

    cifar10 = None if args.cifar10 is None else Path(args.cifar10).expanduser()
    data = make_data(work_dir / 'data', cifar10, scale.amounts)
    study = Study(work_dir, data, scale)
    check_same_scale(study)
    todo = [run for run in grid if not is_done(run, study)]
    say(f'{len(grid)} runs, {len(grid) - len(todo)} are done.')
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    failed = work_off(todo, study, args.jobs, deadline)
    from tables import Store, write_results

    write_results(Store.read(work_dir), work_dir)
    say(f'Tables: {work_dir / "evidence.md"}')
    if failed:
        raise ConfigError(
            f'{len(failed)} runs failed, the first is {failed[0]}: see log.txt in its '
            f'folder below {work_dir / "runs"}.'
        )


def check_same_scale(study: Any) -> None:
    """Refuses a work dir whose runs were of other sizes.

    Raises:
        ConfigError: naming it.
    """
    from mmrobust.errors import ConfigError
    from mmrobust.utils.files import write_atomically

    path = study.work_dir / 'scale.json'
    asked = json.loads(json.dumps(asdict(study.scale)))
    if path.exists() and json.loads(path.read_text()) != asked:
        raise ConfigError(
            f'{study.work_dir} holds runs of another scale: give another --work-dir.'
        )
    write_atomically(path, json.dumps(asked, indent=1) + '\n')


def is_done(run: Run, study: Any) -> bool:
    """Whether a run's record is there.

    Raises:
        ConfigError: if it was made with other settings.
    """
    from mmrobust.errors import ConfigError

    record = study.record(run.name)
    if record is None:
        return False
    asked = json.loads(json.dumps([run.settings, run.needs, study.data['sha256']]))
    if [record['settings'], record['needs'], record['data_sha256']] != asked:
        raise ConfigError(
            f'{study.record_path(run.name)} was made with other settings: give another '
            '--work-dir, or remove the folder.'
        )
    return True


def work_off(
    todo: list[Run], study: Any, jobs: int, deadline: float | None
) -> list[str]:
    """Does runs, several at a time, each after what it needs.

    Returns:
        Names of the runs that failed.
    """
    waiting = list(todo)
    failed: list[str] = []
    running: dict[futures.Future[float], Run] = {}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context('spawn')
    with futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=begin, initargs=(threads,)
    ) as pool:
        while waiting or running:
            missing = {run.name for run in waiting} | {r.name for r in running.values()}
            missing |= set(failed)
            for run in list(waiting):
                late = deadline is not None and time.monotonic() > deadline
                if late or len(running) == jobs:
                    break
                if missing.isdisjoint(run.needs.values()):
                    waiting.remove(run)
                    running[pool.submit(work, run, study)] = run
            if not running:
                break  # the time is over, or what is left needs what failed
            done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                run = running.pop(future)
                error = future.exception()
                left = len(waiting) + len(running)
                if error is None:
                    say(f'{run.name}: {future.result():.0f} s, {left} left')
                else:
                    failed.append(run.name)
                    say(f'{run.name} failed: {error}')
    if waiting:
        say(f'{len(waiting)} runs are left: the same command goes on with them.')
    return failed


def begin(threads: int) -> None:
    """Sets up a process of the pool."""
    import torch

    torch.set_num_threads(threads)
    import cv2

    cv2.setNumThreads(0)


def work(run: Run, study: Any) -> float:
    """Does a run in a process of the pool, its output in its folder."""
    from runs import do

    folder = study.folder(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        (folder / 'log.txt').open('a') as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            do(run, study)
        except BaseException as error:
            traceback.print_exc()
            # Exceptions of others may not travel between processes.
            raise RuntimeError(f'{type(error).__name__}: {error}') from None
    return time.monotonic() - started


def say(text: str) -> None:
    """Prints a line with the time."""
    print(f'{time.strftime("%H:%M:%S")} {text}', flush=True)


if __name__ == '__main__':
    from mmrobust import cli

    cli.run(main)
