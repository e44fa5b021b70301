"""``python -m mmrobust SCRIPT`` is ``python SCRIPT`` with the repairs in place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmrobust.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def run(cwd, *arguments):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *arguments],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def script(tmp_path):
    """A script, with a module beside it, that prints what it sees."""
    folder = tmp_path / 'scripts'
    folder.mkdir()
    (folder / 'beside.py').write_text('VALUE = 7\n')
    path = folder / 'show.py'
    path.write_text(
        'import json, sys\n'
        'import beside\n'
        'seen = dict(name=__name__, file=__file__, argv=sys.argv, path=sys.path,\n'
        "            value=beside.VALUE, main=sys.modules['__main__'].__file__)\n"
        'print(json.dumps(seen))\n'
        'sys.exit(5)\n'
    )
    return path


def test_a_script_sees_what_python_shows_it(script, tmp_path):
    """And its exit code is passed on."""
    arguments = ['scripts/show.py', 'config.py', '--work-dir', 'x', '-h']
    ours = run(tmp_path, '-m', 'mmrobust', *arguments)
    assert ours.returncode == 5, ours.stderr
    theirs = run(tmp_path, *arguments)
    seen, expected = json.loads(ours.stdout), json.loads(theirs.stdout)
    assert Path(seen.pop('file')).name == Path(expected.pop('file')).name == 'show.py'
    assert Path(seen.pop('main')).name == Path(expected.pop('main')).name
    assert seen == expected
    assert seen['argv'] == arguments
    assert seen['path'][0] == str(script.parent)


@pytest.mark.parametrize(
    ('arguments', 'status'), [(['-h'], 0), (['--help'], 0), ([], 2), (['gone.py'], 2)]
)
def test_usage(capsys, arguments, status):
    assert main(arguments) == status
    out, err = capsys.readouterr()
    if arguments == ['gone.py']:
        assert err.startswith("error: there is no command or script 'gone.py'; ")
    else:
        assert (err or out).startswith('usage: mmrobust COMMAND')
    assert bool(out) == (status == 0)
