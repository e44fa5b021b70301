"""tools/dist_train.sh and tools/dist_test.sh, and what launchers do about errors."""

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


def call(folder, script, *arguments, **variables):
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


def launcher(**changed):
    """The options by which torchrun connects machines."""
    values = dict(
        nnodes='1', node_rank='0', master_addr='127.0.0.1', master_port='29500'
    )
    return {f'--{key}={value}' for key, value in {**values, **changed}.items()}


@pytest.mark.parametrize('name', ['dist_train.sh', 'dist_test.sh'])
def test_mode_status_and_usage(name, tmp_path):
    script = ROOT / 'tools' / name
    assert os.access(script, os.X_OK)
    result = call(tmp_path, script, 'config.py')
    assert (result.returncode, result.stdout) == (2, '')
    assert result.stderr.startswith('usage: ')
    assert 'GPUS' in result.stderr
    # The status is torchrun's.
    assert call(tmp_path, script, 'config.py', '2', '2', STATUS='9').returncode == 9


@pytest.mark.parametrize(
    ('stage', 'given', 'rest'),
    [
        ('train', ['my config.py'], ['--work-dir', 'a folder', '--x', 'x=[1, 2]']),
        ('test', ['c.py', 'epoch 12.pth'], ['--attack', 'pgd']),
    ],
)
def test_arguments_arrive(tmp_path, stage, given, rest):
    script = ROOT / f'tools/dist_{stage}.sh'
    result = call(tmp_path, script, *given, '8', *rest)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert set(lines[:5]) == launcher() | {'--nproc_per_node=8'}
    tool = str(ROOT / f'tools/{stage}.py')
    assert lines[5:] == [tool, *given, '--launcher', 'pytorch', *rest]


def test_several_machines(tmp_path):
    variables = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='node-0', PORT='29511')
    result = call(tmp_path, ROOT / 'tools/dist_train.sh', 'c.py', '8', **variables)
    expected = launcher(
        nnodes='2', node_rank='1', master_addr='node-0', master_port='29511'
    )
    assert set(result.stdout.splitlines()[:5]) == expected | {'--nproc_per_node=8'}


def test_from_an_installed_package(tmp_path):
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


def test_an_error_in_one_process_ends_the_run(tmp_path):
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
