"""Measures which of mmdet's model families mmrobust works with.

One config of every family (a folder of mmdet's own configs) is shrunk and, in a process
of its own, trained adversarially and attacked; everything that could go wrong without
an error is checked. The result is a table in Markdown, with a JSON file beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmdet import models  # noqa: F401  (here, so that a forked process has it)
from mmengine.logging import MMLogger
from mmrobust import cli
from mmrobust.report import markdown_table, package_versions
from mmrobust.utils.files import write_atomically
from mmrobust.utils.validation import did_you_mean

from benchmarks.examine import (
    COLUMNS,
    LOSSES,
    NO,
    OBJECTIVES,
    YES,
    Row,
    examine_config,
    in_a_few_words,
)
from benchmarks.families import (
    OUT_OF_SCOPE,
    PROJECTS_OUT_OF_SCOPE,
    families,
    representative,
)


def run_alone(
    task: Callable[[Path], Row], path: Path, timeout: float, log: Path | None = None
) -> Row:
    """Runs a task in a process of its own.

    Args:
        task: gives the row's results.
        path: its argument.
        timeout: seconds after which the process is killed.
        log: where its output goes.

    Returns:
        The row and the processor time it took in seconds; with ``no`` everywhere and
        a reason if the process gave none.
    """
    # A forked process has all imports already, which take longer than the checks.
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context('fork' if 'fork' in methods else 'spawn')
    receiver, sender = context.Pipe(duplex=False)
    started = time.monotonic()
    process = context.Process(target=_child, args=(task, path, sender, log))
    process.start()
    sender.close()
    row: Row | None = None
    reason = f'no result within {timeout:g} s'
    try:
        if receiver.poll(timeout):
            row = receiver.recv()
    except EOFError:
        process.join(10)
        code = process.exitcode
        died = code is not None and code < 0
        reason = (
            f'the process died ({signal.Signals(-code).name})'
            if died
            else f'the process ended with status {code}'
        )
    if process.is_alive() and row is None:
        process.kill()
    process.join(10)
    if row is None:
        row = dict.fromkeys(COLUMNS, NO)
        row['reasons'] = [reason]
    row.setdefault('seconds', round(time.monotonic() - started, 1))
    return row


def _child(
    task: Callable[[Path], Row], path: Path, sender: Any, log: Path | None
) -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    with (
        open(log or os.devnull, 'w', encoding='utf-8') as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        MMLogger.get_instance('coverage', log_level='ERROR')
        try:
            row = task(path)
        except Exception as error:
            traceback.print_exc()
            row = dict.fromkeys(COLUMNS, NO)
            row['reasons'] = [f'build: {in_a_few_words(error)}']
        # Of this process, so that a busy machine gives the same table.
        sender.send({**row, 'seconds': round(time.process_time() - started, 1)})
        sender.close()


_ABOUT = """# Which of mmdet's model families work

One config of every family (a folder of mmdet's own configs), shrunk, with two
synthetic images; no checkpoint is loaded.

- *trains*: two updates of FreeAT move weights and perturbation and leave the batch as
  it was.
- *total*, *cls*, *reg*, *vanish*, *mislabel*, *ranking*: PGD on that objective. The
  gradient is finite and not zero, the total loss is that of training (dropout off,
  BatchNorm on its running statistics), and weights, buffers and flags are the same
  afterwards. n/a: the model has no loss of that name, or its class scores cannot be
  read. empty: with random weights it predicts no box at all, which leaves nothing to
  rank; CornerNet and CentripetalNet drop every pair of corners whose classes differ or
  whose embeddings are far apart, and that is any pair of a fresh network. losses: its
  predictions before suppression fail or have no finite gradient, and scores are ranked
  where losses are computed, as an evaluation does it by itself and says in its report.
- *predicts*: it predicts on the attacked images.

"yes" says that it runs and is right, not how robust a model gets. boxinst needs the
package scikit-image, timm_example needs timm, and glip, grounding_dino and
mm_grounding_dino need transformers (4.49), with a BERT of two layers written on the
spot. Rows `projects/` need a checkout of mmdet (`--checkout`), whose package leaves its
projects out. CO-DETR's loss calls `.cuda()`, which leaves tensors where they are on a
machine without. SparseInst's loss and CARAFE's mask head fail on an image without
objects, as which *vanish* shows every image."""


def markdown(rows: dict[str, Row], skipped: dict[str, str], command: str) -> str:
    """Writes the table.

    Args:
        rows: results by family.
        skipped: families that were not tried, with the reason.
        command: how to repeat it.
    """
    # Rows that were kept from an earlier table lack what was not measured then.
    rows = {k: {**dict.fromkeys(COLUMNS, ''), **row} for k, row in rows.items()}

    def count(name: str) -> int:
        return sum(row[name] in (YES, LOSSES) for row in rows.values())

    good = sum(NO not in (row[name] for name in COLUMNS) for row in rows.values())
    counts = []
    for name in OBJECTIVES:
        measured = sum(row[name] != '' for row in rows.values())
        of = '' if measured == len(rows) else f' (of {measured} measured)'
        counts.append(f'{count(name)} attacked on {name}{of}')
    attacked = ', '.join(counts)
    lines = [
        [family, row['config'], *(row[name] for name in COLUMNS)]
        + [f'{row["seconds"]:.1f}', _joined(row['reasons'])]
        for family, row in sorted(rows.items())
    ]
    head = ['family', 'config', *COLUMNS, 'seconds', 'failure']
    found = {**package_versions(), **_optional_versions()}
    versions = ', '.join(f'{k} {v}' for k, v in found.items())
    total = sum(row['seconds'] for row in rows.values())
    blocks = [
        _ABOUT,
        f'**{good} of {len(rows)} families work**: {count("trains")} train, '
        f'{attacked}, {count("predicts")} predict. Folders out of scope: '
        f'{len(skipped)}.',
        markdown_table(head, lines, 'l' * (len(head) - 2) + 'rl'),
    ]
    if skipped:
        table = markdown_table(['folder', 'why'], sorted(skipped.items()), 'l')
        blocks += ['## Out of scope', table]
    blocks += [
        '## How to repeat it',
        f'- command: `{command}`\n'
        f'- versions: {versions}, Python {sys.version.split()[0]}\n'
        f'- time: {total:.0f} s of one processor core',
    ]
    return '\n\n'.join(blocks) + '\n'


def _joined(reasons: list[str]) -> str:
    """Writes one cell of the table; checks that failed for one reason share it."""
    checks: dict[str, list[str]] = {}
    for reason in reasons:
        check, _, text = reason.partition(': ')
        checks.setdefault(text, []).append(check)
    texts = [f'{", ".join(names)}: {text}' for text, names in checks.items()]
    return '; '.join(texts)


def _optional_versions() -> dict[str, str]:
    """Returns versions of what single families need."""
    found = {}
    for name in ('scikit-image', 'timm', 'transformers'):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        '--family',
        nargs='+',
        metavar='NAME',
        help='only these folders of configs',
    )
    parser.add_argument('--checkout', help='of mmdet, for the rows of its projects/')
    parser.add_argument('--out', default='docs/coverage.md', help='the table')
    parser.add_argument(
        '--timeout', type=float, default=300, help='seconds per family (default 300)'
    )
    parser.add_argument('--jobs', type=int, default=1, help='families at a time')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='keep the results in the JSON file beside the table, run the others',
    )
    parser.add_argument('--logs', help='folder for the output of every family')
    args = parser.parse_args()
    known = families(args.checkout)
    for name in args.family or ():
        if name not in known:
            near = did_you_mean(name, known)
            parser.error(
                f'--family {name} is unknown{near}: choose a folder of configs'
            )
    return args


def main() -> None:
    """Runs all families and writes the table after each."""
    args = parse_args()
    table = Path(args.out)
    store = table.with_suffix('.json')
    wanted = args.family or families(args.checkout)
    skipped = {k: v for k, v in OUT_OF_SCOPE.items() if k in wanted}
    if args.checkout and not args.family:
        skipped |= PROJECTS_OUT_OF_SCOPE
    rows: dict[str, Row] = {}
    if args.resume and store.exists():
        rows = json.loads(store.read_text(encoding='utf-8'))
    todo = [name for name in wanted if name not in skipped and name not in rows]
    table.parent.mkdir(parents=True, exist_ok=True)
    if args.logs:
        Path(args.logs).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    # Without --resume, which would repeat nothing.
    repeated = [word for word in sys.argv[1:] if word != '--resume']
    command = shlex.join(['python', '-m', 'benchmarks.coverage', *repeated])

    def run(family: str) -> tuple[str, Row]:
        config = representative(family, args.checkout)
        name = family.replace('/', '-')
        log = Path(args.logs, f'{name}.log') if args.logs else None
        row = run_alone(examine_config, config, args.timeout, log)
        return family, {'config': config.name, **row}

    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        # Forking beside other threads is only for those who ask for it.
        mapped = pool.map(run, todo) if args.jobs > 1 else map(run, todo)
        for family, row in mapped:
            rows[family] = row
            print(family, *(row.get(name, '') for name in COLUMNS), *row['reasons'])
            sys.stdout.flush()
            write_atomically(store, json.dumps(rows, indent=1, sort_keys=True) + '\n')
            write_atomically(table, markdown(rows, skipped, command))


if __name__ == '__main__':
    cli.run(main)
