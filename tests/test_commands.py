"""The program ``mmrobust``: its subcommands, quick help, the doctor, completion."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmrobust import cli, commands
from mmrobust.__main__ import main
from mmrobust.commands import doctor
from mmrobust.commands.completion import whole_parser

ROOT = Path(__file__).resolve().parents[1]


def python(code, *flags):
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, *flags, '-c', code],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_tool_has_a_command():
    reading = {
        path.name
        for path in (ROOT / 'tools').glob('*.py')
        if 'cli.run(main)' in path.read_text()
    }
    assert {commands.script_of(name).name for name in commands.SCRIPTS} == reading


def test_help_lists_the_commands(capsys):
    assert main(['--help']) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*commands.SCRIPTS, *commands.OWN):
        (line,) = (each for each in lines if each.startswith(f'  {name} '))
        assert line.endswith(('.', '?'))


def test_a_command_is_its_tool(capsys, monkeypatch):
    """With its own name in the help, and what its main raises or returns."""
    monkeypatch.setattr(cli, 'PROGRAM', None)
    monkeypatch.setattr(sys, 'argv', list(sys.argv))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit) as ended:
        main(['transfer-matrix', '--help'])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith('usage: mmrobust transfer-matrix [-h]')
    assert sys.argv[0] == str(commands.script_of('transfer-matrix'))
    with pytest.raises(SystemExit) as ended:
        main(['test', 'gone.py', 'gone.pth'])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: config 'gone.py' does not exist")


def test_help_and_mistakes_wait_for_no_torch():
    """Of all tools, in one process: the parsers, and the mistakes of test.py."""
    out = python(
        """
import runpy, sys
from contextlib import suppress
from mmrobust import commands
for name in commands.SCRIPTS:
    script = str(commands.script_of(name))
    sys.argv = [script, '--help']
    with suppress(SystemExit):
        runpy.run_path(script, run_name='__main__')
sys.argv = [str(commands.script_of('test')), 'gone.py', 'gone.pth', '--attack', 'pgd']
with suppress(SystemExit):
    runpy.run_path(sys.argv[0], run_name='__main__')
print({'torch', 'mmdet'} & set(sys.modules))
"""
    )
    assert out.count('usage: ') == len(commands.SCRIPTS)
    assert out.splitlines()[-1] == 'set()'


def test_torch_is_mended_when_it_is_imported():
    """Once, by whoever imports it, and not by who only asks where it is."""
    out = python(
        """
import importlib.util, sys
import mmrobust
from mmrobust.compat import after_import
calls = []
after_import('torch', lambda: calls.append('first'))
after_import('torch', lambda: calls.append('second'))
importlib.util.find_spec('torch')
print('torch' in sys.modules, calls)
import torch
after_import('torch', lambda: calls.append('now'))
loaders = {type(torch.__loader__).__module__, type(torch.__spec__.loader).__module__}
print(calls, loaders, [f for f in sys.meta_path if getattr(f, 'name', '') == 'torch'])
names = {str(each) for each in torch.serialization.get_safe_globals()}
print(any('HistoryBuffer' in each for each in names))
"""
    ).splitlines()
    assert out[0] == 'False []'
    assert out[1] == "['first', 'second', 'now'] {'_frozen_importlib_external'} []"
    import torch

    protected = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)
    assert out[2] == str(protected)


def test_the_doctor_without_a_stack():
    """Nothing but Python is needed, and there is no traceback."""
    code = f'import sys; sys.path.insert(0, {str(ROOT)!r})\n'
    code += "from mmrobust.commands.doctor import main; print(main(['--json']))"
    out = python(code, '-I', '-S')
    *text, status = out.splitlines()
    found = json.loads('\n'.join(text))
    assert status == '1'
    assert found['stack']['import mmdet'] == 'not installed'
    assert "'.[openmmlab]'" in found['advice'][0]


def test_the_doctor_here(capsys, monkeypatch):
    assert doctor.main(['--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['advice'] == []
    assert found['stack']['distributions'] in ('openmmlab', 'onedl')
    assert found['stack']['operators']
    monkeypatch.setattr(
        doctor.shutil, 'disk_usage', lambda path: argparse.Namespace(free=1e9)
    )
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert '  import mmdet ' in out
    assert 'The stack cannot be imported as it is' in out
    assert 'work_dirs has only 1.0 GB left' in out


def test_completion(capsys):
    pytest.importorskip('shtab')
    assert main(['completion', 'fish']) == 0
    assert 'fit-universal' in capsys.readouterr().out
    (subparsers,) = whole_parser()._subparsers._group_actions
    test = subparsers.choices['test']
    (attack,) = (a for a in test._actions if '--attack' in a.option_strings)
    assert {'pgd', 'ensemble', 'autoattack'} <= set(attack.choices)


def test_completion_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    assert main(['completion', 'bash']) == 2
    assert 'pip install shtab' in capsys.readouterr().err
