"""What the wheel, the sdist and an editable install carry, and tools/bootstrap.py."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('mmrobust', 'configs', 'tools', 'constraints')
SKIPPED = shutil.ignore_patterns('__pycache__', '*.pyc', '.mim', '.ruff_cache')
# Older ones do not read pyproject's licence, and a build of theirs needs the network.
CAN_BUILD = int(setuptools.__version__.split('.')[0]) >= 77

needs_setuptools = pytest.mark.skipif(not CAN_BUILD, reason='needs setuptools 77')


def copy_checkout(target: Path) -> Path:
    """Copies what a build reads, so that the checkout stays as it is."""
    target.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, target)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=SKIPPED)
    return target


def files_in(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def build_wheel(source: Path, target: Path) -> Path:
    command = [sys.executable, '-m', 'pip', 'wheel', str(source), '--no-deps', '-q']
    command += ['--no-build-isolation', '--no-index', '-w', str(target)]
    subprocess.run(command, check=True, timeout=120)
    (wheel,) = target.glob('*.whl')
    return wheel


def call_backend(source: Path, code: str) -> None:
    code = f'from setuptools import build_meta; {code}'
    subprocess.run(
        [sys.executable, '-c', code],
        cwd=source,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )


@pytest.fixture(scope='module')
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp('packaging') / 'checkout')


@pytest.fixture(scope='module')
def wheel(checkout: Path) -> Path:
    return build_wheel(checkout, checkout.parent / 'wheel')


@pytest.fixture(scope='module')
def unpacked(wheel: Path) -> Path:
    target = wheel.parent / 'unpacked'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def version() -> str:
    namespace: dict[str, str] = {}
    exec((ROOT / 'mmrobust/version.py').read_text(), namespace)
    return namespace['__version__']


@pytest.fixture(scope='module')
def metadata(unpacked: Path) -> Message:
    (path,) = unpacked.glob('*.dist-info/METADATA')
    return Parser().parsestr(path.read_text(encoding='utf-8'))


@needs_setuptools
class TestWheel:
    def test_a_plain_install_asks_for_nothing(self, metadata: Message) -> None:
        requirements = metadata.get_all('Requires-Dist') or []
        assert requirements
        assert [line for line in requirements if not re.search('extra *==', line)] == []

    def test_metadata(self, metadata: Message) -> None:
        assert metadata['Name'] == 'mmrobust'
        assert metadata['Version'] == version()
        assert metadata['Requires-Python'] == '>=3.10'
        assert metadata['License-Expression'] == 'Apache-2.0'
        extras = set(metadata.get_all('Provides-Extra') or [])
        assert extras == {'openmmlab', 'onedl', 'demo', 'autoattack', 'test', 'dev'}

    def test_the_stacks_do_not_mix(self, metadata: Message) -> None:
        names: dict[str, set[str]] = {'openmmlab': set(), 'onedl': set()}
        for line in metadata.get_all('Requires-Dist') or []:
            extra = line.split('extra ==')[-1].strip(' "\')')
            if extra in names:
                names[extra].add(re.split(r'[^\w-]', line)[0])
        openmmlab = {'mmdet', 'mmengine', 'mmcv-lite', 'mmpretrain'}
        onedl = {f'onedl-{n}' for n in ('mmdetection', 'mmengine', 'mmcv')}
        assert openmmlab <= names['openmmlab']
        assert onedl <= names['onedl']
        assert not openmmlab & names['onedl']
        assert not [name for name in names['openmmlab'] if name.startswith('onedl')]

    @pytest.mark.parametrize('folder', ['configs', 'tools'])
    def test_mim_finds_configs_and_tools(
        self, unpacked: Path, checkout: Path, folder: str
    ) -> None:
        installed = unpacked / 'mmrobust/.mim' / folder
        assert files_in(installed) == files_in(checkout / folder)
        for name in files_in(installed):
            ours = (checkout / folder / name).read_bytes()
            assert (installed / name).read_bytes() == ours

    def test_the_package_is_whole(self, unpacked: Path, checkout: Path) -> None:
        expected = files_in(checkout / 'mmrobust')
        installed = files_in(unpacked / 'mmrobust')
        assert {name for name in installed if not name.startswith('.mim/')} == expected
        assert 'py.typed' in installed

    def test_the_source_stays_clean(self, tmp_path: Path) -> None:
        source = copy_checkout(tmp_path / 'checkout')
        before = {folder: files_in(source / folder) for folder in FOLDERS}
        build_wheel(source, tmp_path / 'wheel')
        assert {folder: files_in(source / folder) for folder in FOLDERS} == before
        assert not (source / 'mmrobust/.mim').exists()

    def test_it_imports_without_any_other_package(
        self, unpacked: Path, tmp_path: Path
    ) -> None:
        # -I and -S: neither the checkout nor the installed stack can help.
        code = (
            'import sys; sys.path.insert(0, sys.argv[1]); import mmrobust; '
            'print(mmrobust.__version__, mmrobust.__file__)'
        )
        result = subprocess.run(
            [sys.executable, '-I', '-S', '-c', code, str(unpacked)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        found, file = result.stdout.strip().split(' ', 1)
        assert found == version()
        assert Path(file) == unpacked / 'mmrobust/__init__.py'

    def test_a_second_build_forgets_what_was_deleted(self, tmp_path: Path) -> None:
        source = copy_checkout(tmp_path / 'checkout')
        gone = [source / 'mmrobust/gone.py', source / 'configs/gone.py']
        for path in gone:
            path.write_text('')
        with zipfile.ZipFile(build_wheel(source, tmp_path / 'first')) as archive:
            names = {name for name in archive.namelist() if name.endswith('gone.py')}
        assert names == {'mmrobust/gone.py', 'mmrobust/.mim/configs/gone.py'}
        for path in gone:
            path.unlink()
        with zipfile.ZipFile(build_wheel(source, tmp_path / 'second')) as archive:
            assert not [name for name in archive.namelist() if 'gone' in name]


@needs_setuptools
def test_a_wheel_from_the_sdist_is_the_same(
    checkout: Path, wheel: Path, tmp_path: Path
) -> None:
    call_backend(checkout, f'build_meta.build_sdist({str(tmp_path)!r})')
    (sdist,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / 'unpacked', filter='data')
    (source,) = (tmp_path / 'unpacked').iterdir()
    assert files_in(source / 'constraints') == {'openmmlab.txt', 'onedl.txt'}
    with zipfile.ZipFile(build_wheel(source, tmp_path / 'wheel')) as archive:
        names = sorted(archive.namelist())
    with zipfile.ZipFile(wheel) as archive:
        assert names == sorted(archive.namelist())


@needs_setuptools
@pytest.mark.skipif(os.name == 'nt', reason='links need rights on Windows')
def test_an_editable_install_links(tmp_path: Path) -> None:
    source = copy_checkout(tmp_path / 'checkout')
    for target in ('first', 'second'):  # the second finds the links there
        (tmp_path / target).mkdir()
        call_backend(source, f'build_meta.build_editable({str(tmp_path / target)!r})')
        for folder in ('configs', 'tools'):
            link = source / 'mmrobust/.mim' / folder
            assert link.is_symlink()
            assert link.resolve() == (source / folder).resolve()
    # A wheel built beside the links holds files.
    with zipfile.ZipFile(build_wheel(source, tmp_path / 'wheel')) as archive:
        assert archive.read('mmrobust/.mim/tools/train.py') == (
            (source / 'tools/train.py').read_bytes()
        )


@pytest.mark.parametrize('stack', ['openmmlab', 'onedl'])
def test_constraints_are_exact(stack: str) -> None:
    lines = (ROOT / f'constraints/{stack}.txt').read_text().splitlines()
    assert lines[0].startswith('#')
    pins = [line for line in lines if line and not line.startswith('#')]
    assert [
        line for line in pins if not re.match(r'[\w.-]+==\d[\w.]*( ; |$)', line)
    ] == []
    assert {'numpy', 'torch', 'torchvision'} <= pinned(stack)


def pinned(stack: str) -> set[str]:
    lines = (ROOT / f'constraints/{stack}.txt').read_text().splitlines()
    return {line.split('==')[0] for line in lines if '==' in line}


def test_everything_that_gets_installed_is_pinned() -> None:
    """Transitive dependencies, too, of the stack that is installed here."""
    stack = 'onedl' if installed('onedl-mmengine') else 'openmmlab'
    project = tomllib_or_skip().loads((ROOT / 'pyproject.toml').read_text())
    extras = project['project']['optional-dependencies']
    waiting = [Requirement(text) for key in (stack, 'test') for text in extras[key]]
    found: set[str] = set()
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name in found or (need.marker and not need.marker.evaluate({'extra': ''})):
            continue
        found.add(name)
        waiting += map(Requirement, installed(name) or ())
    assert len(found) > 60
    assert found - pinned(stack) <= {'pip'}


def installed(name: str) -> list[str] | None:
    """What a distribution requires; None if it is not there."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return None


def tomllib_or_skip() -> ModuleType:
    return pytest.importorskip('tomllib')  # Python 3.11


# --- tools/bootstrap.py ---


@pytest.fixture
def bootstrap() -> ModuleType:
    path = ROOT / 'tools/bootstrap.py'
    spec = importlib.util.spec_from_file_location('mmrobust_bootstrap', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A stand-in for the checkout, with the files that decide what is installed."""
    root = tmp_path / 'project'
    (root / 'constraints').mkdir(parents=True)
    for name in ('pyproject.toml', 'setup.py'):
        (root / name).write_text('')
    for stack in bootstrap.STACKS:
        (root / f'constraints/{stack}.txt').write_text('')
    monkeypatch.setattr(bootstrap, 'ROOT', root)
    monkeypatch.delenv('MMROBUST_VENV', raising=False)
    return root


class Machine:
    """Stands in for subprocess.run: notes the commands and plays their effect."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.status: dict[str, int] = {}
        self.version = f'{sys.version_info[0]} {sys.version_info[1]}'

    def run(
        self, command: list[str], **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(command)
        kind = self.kind(command)
        status = self.status.get(kind, 0)
        if kind == 'venv' and not status:
            python = Path(command[-1], 'bin', 'python')
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        if kind == 'version' and not Path(command[0]).exists():
            raise FileNotFoundError(2, 'No such file or directory')
        return subprocess.CompletedProcess(command, status, self.version.encode())

    @staticmethod
    def kind(command: list[str]) -> str:
        if command[1:3] == ['-m', 'venv']:
            return 'venv'
        if command[1:4] == ['-m', 'pip', 'install']:
            return 'pip'
        if command[1] == '-c':
            return 'version' if 'version_info' in command[2] else 'has pip'
        return 'job'

    def did(self) -> list[str]:
        """The steps since the last call that change something."""
        kinds = [self.kind(command) for command in self.commands]
        self.commands.clear()
        return [kind for kind in kinds if kind in ('venv', 'pip', 'job')]


@pytest.fixture
def machine(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Machine:
    if os.name == 'nt':
        pytest.skip('the stand-in lays out an environment as POSIX does')
    machine = Machine()
    # Not in the subprocess module itself, which everything else uses.
    stand_in = ModuleType('subprocess')
    stand_in.run = machine.run  # type: ignore[attr-defined]
    stand_in.DEVNULL = subprocess.DEVNULL  # type: ignore[attr-defined]
    monkeypatch.setattr(bootstrap, 'subprocess', stand_in)
    monkeypatch.setattr(bootstrap, 'check_python', lambda version: None)
    return machine


def error_of(call: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which a call ends the program."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.endswith('.\n')
    assert error.count('\n') == 1
    return error


class TestStamp:
    def test_installs_once(
        self, bootstrap: ModuleType, project: Path, machine: Machine
    ) -> None:
        assert bootstrap.main(['demo']) == 0
        assert machine.did() == ['venv', 'pip', 'job']
        assert bootstrap.main(['demo']) == 0
        assert machine.did() == ['job']

    @pytest.mark.parametrize(
        'name', ['pyproject.toml', 'setup.py', 'constraints/openmmlab.txt']
    )
    def test_installs_again_when_a_file_changes(
        self, bootstrap: ModuleType, project: Path, machine: Machine, name: str
    ) -> None:
        bootstrap.main(['setup'])
        machine.did()
        (project / name).write_text('# changed\n')
        bootstrap.main(['setup'])
        assert machine.did() == ['pip']
        (project / 'constraints/onedl.txt').write_text('# of the other stack\n')
        bootstrap.main(['setup'])
        assert machine.did() == []

    def test_knows_the_python(
        self,
        bootstrap: ModuleType,
        project: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first = bootstrap.fingerprint('test', 'openmmlab')
        assert bootstrap.fingerprint('test', 'openmmlab') == first
        assert bootstrap.fingerprint('test,dev', 'openmmlab') != first
        other = ModuleType('sys')
        other.version_info = (3, 99, 0)  # type: ignore[attr-defined]
        monkeypatch.setattr(bootstrap, 'sys', other)
        assert bootstrap.fingerprint('test', 'openmmlab') != first

    @pytest.mark.parametrize(('free', 'warned'), [(9.5, True), (10.5, False)])
    def test_warns_of_a_full_disk(
        self,
        bootstrap: ModuleType,
        project: Path,
        machine: Machine,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        free: float,
        warned: bool,
    ) -> None:
        usage = ModuleType('shutil')
        left = SimpleNamespace(free=free * 1e9)
        usage.disk_usage = lambda folder: left  # type: ignore[attr-defined]
        monkeypatch.setattr(bootstrap, 'shutil', usage)
        assert bootstrap.main(['setup']) == 0
        assert ('Only 9.5 GB are free' in capsys.readouterr().out) is warned

    def test_a_failed_install_is_done_again(
        self,
        bootstrap: ModuleType,
        project: Path,
        machine: Machine,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        machine.status['pip'] = 1
        error = error_of(lambda: bootstrap.main(['test']), capsys)
        assert 'could not be installed' in error
        assert 'network' in error
        assert machine.did() == ['venv', 'pip']
        machine.status.clear()
        assert bootstrap.main(['test']) == 0
        assert machine.did() == ['pip', 'job']

    def test_a_half_made_environment_is_repaired(
        self, bootstrap: ModuleType, project: Path, machine: Machine
    ) -> None:
        python = project / '.venv/bin/python'
        python.parent.mkdir(parents=True)
        python.touch()
        machine.status['has pip'] = 1
        bootstrap.main(['setup'])
        (venv,) = [c for c in machine.commands if machine.kind(c) == 'venv']
        assert '--clear' not in venv

    def test_another_python_makes_its_own_environment_anew(
        self, bootstrap: ModuleType, project: Path, machine: Machine
    ) -> None:
        bootstrap.main(['setup'])
        machine.did()
        machine.version = '3 9'
        (project / 'setup.py').write_text('# changed\n')
        bootstrap.main(['setup'])
        assert '--clear' in machine.commands[1]
        assert machine.did() == ['venv', 'pip']

    def test_a_users_environment_is_never_emptied(
        self,
        bootstrap: ModuleType,
        project: Path,
        machine: Machine,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        python = project / 'mine/bin/python'
        python.parent.mkdir(parents=True)
        python.touch()
        machine.version = '3 9'
        call = ['setup', '--venv', str(project / 'mine')]
        assert 'Python 3.9' in error_of(lambda: bootstrap.main(call), capsys)
        assert machine.did() == []


class TestPlaces:
    def test_each_stack_has_its_own_environment(
        self, bootstrap: ModuleType, project: Path, machine: Machine
    ) -> None:
        bootstrap.main(['setup', '--stack', 'onedl'])
        pip = machine.commands[-1]
        assert pip[0] == str(project / '.venv-onedl/bin/python')
        assert pip[-4:-2] == ['-c', 'constraints/onedl.txt']
        assert pip[-1] == '.[onedl,demo,test,dev]'

    def test_option_before_variable_before_default(
        self,
        bootstrap: ModuleType,
        project: Path,
        machine: Machine,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv('MMROBUST_VENV', str(tmp_path / 'variable'))
        bootstrap.main(['setup'])
        assert (tmp_path / 'variable/mmrobust-setup').is_file()
        bootstrap.main(['setup', '--venv', str(tmp_path / 'option')])
        assert (tmp_path / 'option/mmrobust-setup').is_file()
        assert not (project / '.venv').exists()

    def test_a_relative_folder_is_where_the_user_stands(
        self,
        bootstrap: ModuleType,
        project: Path,
        machine: Machine,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        (tmp_path / 'here').mkdir()
        monkeypatch.chdir(tmp_path / 'here')
        bootstrap.main(['setup', '--venv', 'env'])
        assert machine.commands[-1][0] == str(tmp_path / 'here/env/bin/python')
        assert (tmp_path / 'here/env/mmrobust-setup').is_file()

    def test_torch_index(
        self, bootstrap: ModuleType, project: Path, machine: Machine
    ) -> None:
        bootstrap.main(['setup', '--torch-index', 'https://example.org/cpu'])
        pip = machine.commands[-1]
        assert pip[-2:] == ['--extra-index-url', 'https://example.org/cpu']


class TestErrors:
    def test_an_old_python(
        self, bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
    ) -> None:
        error = error_of(lambda: bootstrap.check_python((3, 9)), capsys)
        assert 'Python 3.9 is too old' in error

    def test_a_new_python_only_warns(
        self, bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for minor in (10, 11, 12):
            bootstrap.check_python((3, minor))
        assert capsys.readouterr() == ('', '')
        bootstrap.check_python((3, 13))
        assert '3.13 was not tested' in capsys.readouterr().out

    def test_a_folder_that_cannot_be_made(
        self,
        bootstrap: ModuleType,
        project: Path,
        machine: Machine,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        # Below a file, because permissions do not stop root.
        call = ['setup', '--venv', str(project / 'setup.py/env')]
        error = error_of(lambda: bootstrap.main(call), capsys)
        assert 'cannot be made' in error
        assert '--venv' in error
        assert machine.did() == []

    def test_a_stamp_that_cannot_be_written(
        self,
        bootstrap: ModuleType,
        project: Path,
        machine: Machine,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (project / '.venv/mmrobust-setup').mkdir(parents=True)
        error = error_of(lambda: bootstrap.main(['setup']), capsys)
        assert 'cannot be written' in error

    def test_no_venv_module(
        self,
        bootstrap: ModuleType,
        project: Path,
        machine: Machine,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        machine.status['venv'] = 1
        error = error_of(lambda: bootstrap.main(['setup']), capsys)
        assert 'python3-venv' in error


class TestArguments:
    @pytest.mark.parametrize(
        ('given', 'forwarded'),
        [
            (['test', '-k', 'foo', '-x'], ['-k', 'foo', '-x']),
            (
                ['test', 'tests/attacks', '--maxfail=1'],
                ['tests/attacks', '--maxfail=1'],
            ),
            (['demo', '--', '--stack', 'mine'], ['--stack', 'mine']),
            (['demo', '--venv', 'x', '--', '--eps', '4'], ['--eps', '4']),
            (['test', '--stack', 'onedl', '-q'], ['-q']),
            (['test', '--st', 'a'], ['--st', 'a']),  # no abbreviation of ours
            (['test'], []),
        ],
    )
    def test_what_is_unknown_is_the_jobs(
        self, bootstrap: ModuleType, given: list[str], forwarded: list[str]
    ) -> None:
        assert bootstrap.parse_args(given)[1] == forwarded

    def test_lint_stops_at_the_first_failure(
        self, bootstrap: ModuleType, project: Path, machine: Machine
    ) -> None:
        machine.status['job'] = 3
        assert bootstrap.main(['lint']) == 3
        assert machine.did() == ['venv', 'pip', 'job']
        machine.status.clear()
        assert bootstrap.main(['lint']) == 0
        jobs = [command[2] for command in machine.commands]
        assert jobs == ['ruff', 'ruff', 'mypy']

    @pytest.mark.skipif(os.name == 'nt', reason='the stub is a shell script')
    def test_as_a_user_calls_it(self, bootstrap: ModuleType, tmp_path: Path) -> None:
        venv = tmp_path / 'env'
        python = venv / 'bin/python'
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
        python.chmod(0o755)
        extras = bootstrap.STACKS['openmmlab'][1]
        stamp = bootstrap.fingerprint(extras, 'openmmlab')
        (venv / 'mmrobust-setup').write_text(stamp)
        result = subprocess.run(
            [sys.executable, str(ROOT / 'tools/bootstrap.py'), 'demo']
            + ['--venv', 'env', '--', '--out dir', 'x y'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 7
        assert result.stdout.splitlines() == ['tools/demo.py', '--out dir', 'x y']
        assert result.stderr == ''
