"""What the wheel, the sdist and an editable install carry, and tools/bootstrap.py."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('mmrobust', 'configs', 'tools', 'constraints')
# What the tests of an sdist read beside them.
TESTED = ('tests', 'benchmarks', 'docs', 'experiments')
KINDS = ('.py', '.md', '.pth', '.jsonl')
SKIPPED = shutil.ignore_patterns(
    '__pycache__', '*.pyc', '.mim', '.ruff_cache', 'work_dirs'
)
# Older ones do not read pyproject's licence, and a build of theirs needs the network.
CAN_BUILD = int(setuptools.__version__.split('.')[0]) >= 77
needs_setuptools = pytest.mark.skipif(not CAN_BUILD, reason='needs setuptools 77')


def files_in(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def build(source, target, kind):
    """Builds a wheel, an sdist or an editable wheel."""
    target.mkdir()
    code = (
        f'from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})'
    )
    subprocess.run(
        [sys.executable, '-c', code],
        cwd=source,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    (built,) = target.iterdir()
    return built


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of what a build reads, so that the checkout stays as it is."""
    target = tmp_path_factory.mktemp('packaging') / 'checkout'
    target.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, target)
    for folder in (*FOLDERS, *TESTED):
        shutil.copytree(ROOT / folder, target / folder, ignore=SKIPPED)
    return target


@pytest.fixture(scope='module')
def wheel(checkout):
    return build(checkout, checkout.parent / 'wheel', 'wheel')


@pytest.fixture(scope='module')
def unpacked(wheel):
    target = wheel.parent / 'unpacked'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@needs_setuptools
def test_metadata(unpacked):
    (path,) = unpacked.glob('*.dist-info/METADATA')
    metadata = Parser().parsestr(path.read_text(encoding='utf-8'))
    version = runpy.run_path(str(ROOT / 'mmrobust/version.py'))['__version__']
    assert (metadata['Name'], metadata['Version']) == ('mmrobust', version)
    assert metadata['Requires-Python'] == '>=3.10'
    assert metadata['License-Expression'] == 'Apache-2.0'
    extras = set(metadata.get_all('Provides-Extra') or [])
    stacks, tools = {'openmmlab', 'onedl'}, {'demo', 'test', 'dev', 'docs'}
    assert extras == stacks | tools | {'autoattack', 'corruptions', 'completion'}
    (path,) = unpacked.glob('*.dist-info/entry_points.txt')
    assert 'mmrobust = mmrobust.__main__:main' in path.read_text()
    lines = metadata.get_all('Requires-Dist') or []
    # A plain install asks for nothing, and the stacks do not mix.
    assert all(re.search('extra *==', line) for line in lines)
    names = {'openmmlab': set(), 'onedl': set()}
    for line in lines:
        extra = line.split('extra ==')[-1].strip(' "\')')
        names.get(extra, set()).add(re.split(r'[^\w-]', line)[0])
    assert {'mmdet', 'mmengine', 'mmcv-lite', 'mmpretrain'} <= names['openmmlab']
    onedl = {f'onedl-{name}' for name in ('mmdetection', 'mmengine', 'mmcv')}
    assert onedl <= names['onedl']
    assert not any(name.startswith('onedl') for name in names['openmmlab'])
    assert not {'mmdet', 'mmengine', 'mmcv-lite', 'mmpretrain'} & names['onedl']


@needs_setuptools
def test_the_wheel_is_whole_and_the_source_stays_clean(unpacked, checkout):
    """With configs and tools where OpenMMLab's mim looks for them."""
    expected = files_in(checkout / 'mmrobust')
    for folder in ('configs', 'tools'):
        expected |= {f'.mim/{folder}/{name}' for name in files_in(checkout / folder)}
    assert files_in(unpacked / 'mmrobust') == expected
    assert 'py.typed' in expected
    for folder in FOLDERS:
        ours = files_in(ROOT / folder)
        assert files_in(checkout / folder) == {n for n in ours if '.mim/' not in n}
    assert not (checkout / 'mmrobust/.mim').exists()


@needs_setuptools
def test_it_imports_without_any_other_package(unpacked, tmp_path):
    # -I and -S: neither the checkout nor the installed stack can help.
    code = 'import sys; sys.path.insert(0, sys.argv[1]); import mmrobust as m; '
    code += 'print(m.__file__)'
    done = subprocess.run(
        [sys.executable, '-I', '-S', '-c', code, str(unpacked)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == str(unpacked / 'mmrobust/__init__.py'), done.stderr


@needs_setuptools
def test_a_wheel_from_the_sdist_is_the_same(checkout, wheel, tmp_path):
    """Also after a build that held files which have been deleted since."""
    gone = [checkout / 'mmrobust/gone.py', checkout / 'configs/gone.py']
    for path in gone:
        path.write_text('')
    first = names_in(build(checkout, tmp_path / 'first', 'wheel'))
    added = {'mmrobust/gone.py', 'mmrobust/.mim/configs/gone.py'}
    assert set(first) - set(names_in(wheel)) == added
    for path in gone:
        path.unlink()
    with tarfile.open(build(checkout, tmp_path / 'sdist', 'sdist')) as archive:
        archive.extractall(tmp_path / 'unpacked', filter='data')
    (source,) = (tmp_path / 'unpacked').iterdir()
    assert files_in(source / 'constraints') == {'openmmlab.txt', 'onedl.txt'}
    for folder in TESTED:
        tested = {n for n in files_in(checkout / folder) if n.endswith(KINDS)}
        assert tested <= files_in(source / folder)
    for place, name in ((source, 'second'), (checkout, 'third')):
        assert names_in(build(place, tmp_path / name, 'wheel')) == names_in(wheel)


@needs_setuptools
@pytest.mark.skipif(os.name == 'nt', reason='links need rights on Windows')
def test_an_editable_install_links(checkout, tmp_path):
    source = shutil.copytree(checkout, tmp_path / 'checkout')
    for target in ('first', 'second'):  # the second finds the links there
        build(source, tmp_path / target, 'editable')
        for folder in ('configs', 'tools'):
            link = source / 'mmrobust/.mim' / folder
            assert link.is_symlink()
            assert link.resolve() == (source / folder).resolve()
    # A wheel built beside the links holds files.
    with zipfile.ZipFile(build(source, tmp_path / 'wheel', 'wheel')) as archive:
        content = archive.read('mmrobust/.mim/tools/train.py')
    assert content == (source / 'tools/train.py').read_bytes()


# ------------------------------------------------------------------------- constraints


def pins(stack):
    lines = (ROOT / f'constraints/{stack}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


@pytest.mark.parametrize('stack', ['openmmlab', 'onedl'])
def test_constraints_are_exact(stack):
    assert all(re.match(r'[\w.-]+==\d[\w.]*( ; |$)', line) for line in pins(stack))
    assert {'numpy', 'torch'} <= {line.split('==')[0] for line in pins(stack)}


def required(name):
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def test_everything_that_gets_installed_is_pinned():
    """Transitive dependencies, too, of the stack that is installed here."""
    tomllib = pytest.importorskip('tomllib')  # Python 3.11
    stack = 'onedl' if required('onedl-mmengine') else 'openmmlab'
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    extras = project['project']['optional-dependencies']
    waiting = [Requirement(text) for key in (stack, 'test') for text in extras[key]]
    found = set()
    for need in waiting:  # which grows
        name = canonicalize_name(need.name)
        if name in found or (need.marker and not need.marker.evaluate({'extra': ''})):
            continue
        found.add(name)
        waiting += map(Requirement, required(name))
    assert len(found) > 60
    assert found - {line.split('==')[0] for line in pins(stack)} <= {'pip'}


# ------------------------------------------------------------------ tools/bootstrap.py


class Machine:
    """Stands in for subprocess.run of a bootstrap.py whose project is empty.

    It notes the commands, plays their effect, and ends those in ``status`` with it.
    """

    def __init__(self, root):
        self.tool = SimpleNamespace(**runpy.run_path(str(ROOT / 'tools/bootstrap.py')))
        self.globals = self.tool.main.__globals__
        stand_in = SimpleNamespace(run=self.run, DEVNULL=subprocess.DEVNULL)
        self.globals.update(subprocess=stand_in, ROOT=root)
        self.globals.update(check_python=lambda version: None)
        self.root, self.commands = root, list[list[str]]()
        self.status = {}
        self.version = f'{sys.version_info[0]} {sys.version_info[1]}'
        (root / 'constraints').mkdir(parents=True)
        names = [f'constraints/{stack}.txt' for stack in self.tool.STACKS]
        for name in ('pyproject.toml', 'setup.py', *names):
            (root / name).write_text('')

    def run(self, command, **options):
        self.commands.append(command)
        kind = self.kind(command)
        status = self.status.get(kind, 0)
        if kind == 'venv' and not status:
            self.python(Path(command[-1]))
        if kind == 'version' and not Path(command[0]).exists():
            raise FileNotFoundError(2, 'No such file or directory')
        return subprocess.CompletedProcess(command, status, self.version.encode())

    @staticmethod
    def python(venv):
        (venv / 'bin').mkdir(parents=True, exist_ok=True)
        (venv / 'bin/python').touch()

    @staticmethod
    def kind(command):
        if command[1] == '-c':
            return 'version' if 'version_info' in command[2] else 'has pip'
        jobs = {('-m', 'venv'): 'venv', ('-m', 'pip'): 'pip'}
        return jobs.get(tuple(command[1:3]), 'job')

    def did(self, *arguments, ends=0):
        """The steps of a call that change something."""
        self.commands.clear()
        assert self.tool.main(list(arguments)) == ends
        kinds = [self.kind(command) for command in self.commands]
        return [kind for kind in kinds if kind in ('venv', 'pip', 'job')]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    if os.name == 'nt':
        pytest.skip('the stand-in lays out an environment as POSIX does')
    monkeypatch.delenv('MMROBUST_VENV', raising=False)
    return Machine(tmp_path / 'project')


def test_it_installs_once_and_again_when_a_file_changes(machine):
    assert machine.did('demo') == ['venv', 'pip', 'job']
    assert machine.did('demo') == ['job']
    for name in ('pyproject.toml', 'setup.py', 'constraints/openmmlab.txt'):
        (machine.root / name).write_text('# changed\n')
        assert machine.did('setup') == ['pip']
    (machine.root / 'constraints/onedl.txt').write_text('# of the other stack\n')
    assert machine.did('setup') == []
    other = SimpleNamespace(version_info=(3, 99, 0))
    first = machine.tool.fingerprint('test', 'openmmlab')
    assert machine.tool.fingerprint('test,dev', 'openmmlab') != first
    machine.globals['sys'] = other
    assert machine.tool.fingerprint('test', 'openmmlab') != first


def test_what_failed_is_done_again(machine):
    machine.status['pip'] = 1
    with pytest.raises(SystemExit):
        machine.did('test')
    machine.status.clear()
    assert machine.did('test') == ['pip', 'job']
    machine.status.update(job=3)
    assert machine.did('lint', ends=3) == ['job']


def test_whose_environment_is_made_anew(machine):
    """A half-made one is repaired, another Python's own emptied, a user's never."""
    machine.python(machine.root / '.venv')
    machine.status['has pip'] = 1
    assert machine.did('setup') == ['venv', 'pip']
    assert not any('--clear' in command for command in machine.commands)
    machine.version = '3 9'
    (machine.root / 'setup.py').write_text('# changed\n')
    assert machine.did('setup') == ['venv', 'pip']
    assert any('--clear' in command for command in machine.commands)


def test_where_the_environment_is(machine, monkeypatch, tmp_path):
    """Option before variable before default, relative to where the user stands."""
    machine.did('setup', '--stack', 'onedl', '--torch-index', 'https://x.org/cpu')
    pip = machine.commands[-1]
    assert pip[0] == str(machine.root / '.venv-onedl/bin/python')
    assert pip[-6:-2] == [
        *('-c', 'constraints/onedl.txt', '-e', '.[onedl,demo,test,dev,docs]')
    ]
    assert pip[-2:] == ['--extra-index-url', 'https://x.org/cpu']
    monkeypatch.setenv('MMROBUST_VENV', str(tmp_path / 'variable'))
    monkeypatch.chdir(tmp_path)
    machine.did('setup')
    machine.did('setup', '--venv', 'option')
    for name in ('variable', 'option'):
        assert (tmp_path / name / 'mmrobust-setup').is_file()
    assert not (machine.root / '.venv').exists()


@pytest.mark.parametrize(
    ('broken', 'arguments', 'sentence'),
    [
        (dict(pip=1), [], 'could not be installed: is there a network'),
        (dict(venv=1), [], 'python3-venv'),
        ({}, ['--venv', 'ROOT/setup.py/env'], 'cannot be made'),
        ({}, ['--venv', 'ROOT/stamped'], 'cannot be written'),
        ({}, ['--venv', 'ROOT/mine'], 'holds an environment of Python 3.9'),
        ({}, ['--stack', 'x'], 'invalid choice'),
    ],
)
def test_a_mistake_is_one_sentence(machine, capsys, broken, arguments, sentence):
    machine.status.update(broken)
    (machine.root / 'stamped/mmrobust-setup').mkdir(parents=True)
    machine.python(machine.root / 'mine')
    if 'ROOT/mine' in arguments:
        machine.version = '3 9'
    with pytest.raises(SystemExit) as ended:
        machine.did('setup', *(a.replace('ROOT', str(machine.root)) for a in arguments))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r'error: [^\n]*\.\n', error)
    assert sentence in error


def test_pythons_and_disks(machine, capsys):
    check = runpy.run_path(str(ROOT / 'tools/bootstrap.py'))['check_python']
    with pytest.raises(SystemExit):
        check((3, 9))
    assert 'Python 3.9 is too old' in capsys.readouterr().err
    for minor in (10, 11, 12):
        check((3, minor))
    assert capsys.readouterr() == ('', '')
    check((3, 13))
    assert '3.13 was not tested' in capsys.readouterr().out
    for free, warned in ((10.5, False), (9.5, True)):
        usage = SimpleNamespace(free=free * 1e9)
        machine.globals['shutil'] = SimpleNamespace(disk_usage=lambda path, u=usage: u)
        (machine.root / 'setup.py').write_text(str(free))
        machine.did('setup')
        assert ('Only 9.5 GB are free' in capsys.readouterr().out) is warned


@pytest.mark.parametrize(
    ('given', 'forwarded'),
    [
        (['test', '-k', 'foo', 'tests/x', '--maxfail=1'], None),
        (['demo', '--venv', 'x', '--', '--stack', 'mine'], ['--stack', 'mine']),
        (['test', '--stack', 'onedl', '-q'], ['-q']),
        (['test', '--st', 'a'], None),  # no abbreviation of ours
    ],
)
def test_what_is_unknown_is_the_jobs(machine, given, forwarded):
    rest = given[1:] if forwarded is None else forwarded
    assert machine.tool.parse_args(given)[1] == rest
