"""tools/dist_train.sh and tools/dist_test.sh, and what launchers do about errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which('bash')
VARIABLES = ('NNODES', 'NODE_RANK', 'PORT', 'MASTER_ADDR')

pytestmark = pytest.mark.skipif(BASH is None or os.name == 'nt', reason='needs bash')


def call(
    folder: Path, script: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script with a torchrun that prints its arguments, one a line."""
    stub = folder / 'bin/torchrun'
    stub.parent.mkdir(exist_ok=True)
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit "${STATUS:-0}"\n')
    stub.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env['PATH'] = os.pathsep.join([str(stub.parent), env['PATH']])
    return subprocess.run(
        [str(BASH), str(script), *arguments],
        cwd=folder,
        env={**env, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )


def launcher(
    nodes: str = '1', rank: str = '0', address: str = '127.0.0.1', port: str = '29500'
) -> set[str]:
    return {
        f'--nnodes={nodes}',
        f'--node_rank={rank}',
        f'--master_addr={address}',
        f'--master_port={port}',
    }


@pytest.mark.parametrize('name', ['dist_train.sh', 'dist_test.sh'])
class TestBoth:
    def test_syntax_and_mode(self, name: str) -> None:
        script = ROOT / 'tools' / name
        subprocess.run([str(BASH), '-n', str(script)], check=True, timeout=30)
        assert os.access(script, os.X_OK)

    def test_too_few_arguments(self, name: str, tmp_path: Path) -> None:
        result = call(tmp_path, ROOT / 'tools' / name, 'config.py')
        assert result.returncode == 2
        assert result.stdout == ''
        assert result.stderr.startswith('usage: ')
        assert 'GPUS' in result.stderr

    def test_the_status_is_torchruns(self, name: str, tmp_path: Path) -> None:
        arguments = ['config.py', '2', '2']
        result = call(tmp_path, ROOT / 'tools' / name, *arguments, STATUS='9')
        assert result.returncode == 9


def test_train(tmp_path: Path) -> None:
    script = ROOT / 'tools/dist_train.sh'
    rest = ['--work-dir', 'a folder', '--cfg-options', 'x=[1, 2]']
    result = call(tmp_path, script, 'my config.py', '8', *rest)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert set(lines[:5]) == launcher() | {'--nproc_per_node=8'}
    assert lines[5:] == [
        str(ROOT / 'tools/train.py'),
        'my config.py',
        '--launcher',
        'pytorch',
        *rest,
    ]


def test_test(tmp_path: Path) -> None:
    script = ROOT / 'tools/dist_test.sh'
    result = call(tmp_path, script, 'c.py', 'epoch 12.pth', '4', '--attack', 'pgd')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert set(lines[:5]) == launcher() | {'--nproc_per_node=4'}
    assert lines[5:] == [
        str(ROOT / 'tools/test.py'),
        'c.py',
        'epoch 12.pth',
        '--launcher',
        'pytorch',
        '--attack',
        'pgd',
    ]


def test_several_machines(tmp_path: Path) -> None:
    variables = {
        'NNODES': '2',
        'NODE_RANK': '1',
        'MASTER_ADDR': 'node-0',
        'PORT': '29511',
    }
    script = ROOT / 'tools/dist_train.sh'
    result = call(tmp_path, script, 'c.py', '8', **variables)
    expected = launcher('2', '1', 'node-0', '29511') | {'--nproc_per_node=8'}
    assert set(result.stdout.splitlines()[:5]) == expected


def test_from_an_installed_package(tmp_path: Path) -> None:
    """The scripts run the train.py and test.py that lie beside them."""
    tools = tmp_path / 'site packages/mmrobust/.mim/tools'
    tools.mkdir(parents=True)
    script = Path(shutil.copy(ROOT / 'tools/dist_train.sh', tools))
    script.chmod(0o644)  # a wheel may lose the right to execute
    result = call(tmp_path, script.relative_to(tmp_path), 'c.py', '1')
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[5] == str(tools / 'train.py')


BROKEN = """
import sys, torch
from mmengine.config import Config
from mmrobust import cli
from mmrobust.distributed import start_processes
from mmrobust.errors import doing

def main():
    start_processes(Config(dict(launcher='pytorch')))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 1:
        with doing('attacking image 17 with pgd'):
            raise ZeroDivisionError('out of luck')
    torch.distributed.barrier()  # waits for the other one

cli.run(main)
"""


def test_an_error_in_one_process_ends_the_run(tmp_path: Path) -> None:
    """With its traceback and a status, long before the others' patience ends."""
    script = tmp_path / 'broken.py'
    script.write_text(BROKEN)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    environment['CUDA_VISIBLE_DEVICES'] = ''
    command = [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run']
    command += ['--standalone', '--nproc_per_node=2', str(script)]
    began = time.monotonic()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert time.monotonic() - began < 120  # the patience is half an hour
    assert 'while attacking image 17 with pgd' in done.stderr
    assert 'ZeroDivisionError: out of luck' in done.stderr
