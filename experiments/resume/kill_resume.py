"""Kills an evaluation at random moments, resumes it, and compares the reports.

    python experiments/resume/kill_resume.py CONFIG CHECKPOINT

``tools/test.py`` runs once undisturbed. Then it runs again with another report, and its
process group gets SIGKILL at one random moment after the other, from its start to the
last report; each time the same command goes on. At last it may finish, and both reports
must be equal in all but times, dates, commands and paths.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Where it may be killed, as weights of the random choice.
KINDS = {'start-up': 2, 'passes': 5, 'report': 2}
TEMPORARY = '.robustness.*.*'
TIMES = {'seconds', 'date', 'command'}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--work-dir', default='work_dirs/kill_resume')
    parser.add_argument('--num-images', type=int, default=12)
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Runs, kills, compares; returns the exit status."""
    args = parse_args()
    work = Path(args.work_dir)
    shutil.rmtree(work, ignore_errors=True)
    whole, killed = work / 'whole', work / 'killed'
    started = time.monotonic()
    with evaluation(args, whole) as process:
        startup = wait_for_records(process, whole, 1)
        check(process)
    seconds = time.monotonic() - started
    total = args.num_images * (1 + 2)  # the benign pass and two attacks
    print(
        f'undisturbed: {seconds:.1f} s, the first image on record after {startup:.1f} s'
    )
    print(f'| kill | moment | after (s) | records of {total} | report on disk |')
    print('|---|---|---|---|---|')
    pause = (seconds - startup) / total
    rng = random.Random(args.seed)
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=args.kills - 3)
    # Not left to chance: both ends, and the last one twice, since it has several files.
    kinds = ['start-up', *kinds, 'last report', 'complete']
    for number, kind in enumerate(kinds, 1):
        left = total - count_records(killed)
        more = rng.randint(1, max(1, 2 * left // (args.kills - number + 1)))
        temporary = set(killed.glob(TEMPORARY))
        started = time.monotonic()
        with evaluation(args, killed) as process:
            if kind == 'start-up':
                time.sleep(rng.uniform(0, startup))
            elif kind == 'passes':
                wait_for_records(process, killed, min(total, total - left + more))
                time.sleep(rng.uniform(0, pause))
            elif kind == 'complete':
                # The Markdown twin, the page and the end of the records are to come.
                while process.poll() is None and state_of_report(killed) != kind:
                    time.sleep(0.0005)
                time.sleep(rng.uniform(0, 0.1))
            else:
                last = kind == 'last report'
                wait_for_records(process, killed, total if last else 0)
                # Reports are written to a temporary file first.
                while process.poll() is None and temporary >= set(
                    killed.glob(TEMPORARY)
                ):
                    time.sleep(0.0005)
                time.sleep(rng.uniform(0, 0.1))
            kind = kind if process.poll() is None else 'too late'
            after = time.monotonic() - started
        print(
            f'| {number} | {kind} | {after:.2f} | {count_records(killed)} | '
            f'{state_of_report(killed)} |',
            flush=True,
        )
    with evaluation(args, killed) as process:
        check(process)
    left = sorted(path.name for path in killed.glob('*robustness.records*'))
    differences = list(compare(read(whole), read(killed)))
    print(f'\nleft behind: {", ".join(left) or "nothing"}')
    print('\n'.join(differences) or 'identical')
    return int(bool(differences or left))


@contextmanager
def evaluation(args: argparse.Namespace, folder: Path) -> Iterator[subprocess.Popen]:
    """``tools/test.py`` in a process group of its own, dead at the end."""
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'test.py')]
    command += [args.config, args.checkpoint, '--work-dir', str(folder)]
    command += ['--attack', 'pgd', 'ensemble', '--version', 'fast', '--eps', '8']
    command += ['--num-images', str(args.num_images)]
    command += ['--report', str(folder / 'robustness.json')]
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        'PYTHONPATH': f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
    }
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_records(process: subprocess.Popen, folder: Path, count: int) -> float:
    """Waits for so many records, or the end; returns the seconds."""
    started = time.monotonic()
    while process.poll() is None and count_records(folder) < count:
        time.sleep(0.002)
    return time.monotonic() - started


def count_records(folder: Path) -> int:
    """Images on record, over all passes but the trials of the checks."""
    found = (folder / 'robustness.records').glob('*/*.record')
    return sum(not path.parent.name.startswith('trials-') for path in found)


def state_of_report(folder: Path) -> str:
    """What a reader of the report would find."""
    path = folder / 'robustness.json'
    if not path.exists():
        return 'none'
    content = read(folder)
    if content['complete']:
        return 'complete'
    return f'benign and {len(content["attacks"])} attacks'


def read(folder: Path) -> Any:
    """The JSON report; fails if it is half written."""
    return json.loads((folder / 'robustness.json').read_text())


def check(process: subprocess.Popen) -> None:
    """Waits for the end, which must be a good one."""
    if process.wait() != 0:
        raise SystemExit('the evaluation failed: see log.txt in the work folder.')


def compare(one: Any, two: Any, where: str = 'report') -> Iterator[str]:
    """Names what differs between two reports, but for times, commands and paths."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}):
            if key not in TIMES:
                yield from compare(one.get(key), two.get(key), f'{where}.{key}')
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for index, pair in enumerate(zip(one, two, strict=True)):
            yield from compare(*pair, f'{where}[{index}]')
    elif _without_folder(one) != _without_folder(two):
        yield f'{where}: {one!r} and {two!r}'


def _without_folder(value: Any) -> Any:
    return (
        re.sub(r'/(whole|killed)\b', '/FOLDER', value)
        if isinstance(value, str)
        else value
    )


if __name__ == '__main__':
    sys.exit(main())
