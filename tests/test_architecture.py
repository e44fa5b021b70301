"""The layout: which files import which, and the page that explains it."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import grimp
import mmrobust  # noqa: F401  (before mmdet)
import pytest
import stored
import torch
import updates
from mmengine.optim import OptimWrapper
from mmrobust.batch import float_images
from mmrobust.objective import NAMED, LossOracle, loss_mode
from mmrobust.registry import ADVERSARIES, ATTACKS
from mmrobust.weights import SOURCES

ROOT = Path(__file__).resolve().parents[1]
# Packages whose modules anybody may import: the ground, and mere containers.
OPEN = {'mmrobust', 'mmrobust.utils', 'mmrobust.compat', 'mmrobust.studies'}


def modules():
    """All modules by name, packages as well."""
    paths = [
        p for top in ('mmrobust', 'benchmarks') for p in ROOT.glob(f'{top}/**/*.py')
    ]
    found = {path: path.relative_to(ROOT).with_suffix('').parts for path in paths}
    return {'.'.join(p).removesuffix('.__init__'): path for path, p in found.items()}


def imports(name, path):
    """The module and the names of each from-import, late and for types as well."""
    package = name if path.stem == '__init__' else name.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            target = '.' * node.level + (node.module or '')
            yield resolve_name(target, package), [alias.name for alias in node.names]


def around(module):
    """The packages that a module lies in."""
    parts = module.split('.')
    return {'.'.join(parts[:end]) for end in range(1, len(parts))}


def test_no_file_reaches_past_the_face_of_another_package():
    """What others need stands in the package's ``__init__``."""
    known = modules()
    faces = {
        package: {name for _, names in imports(package, path) for name in names}
        for package, path in known.items()
        if path.stem == '__init__'
    }
    past = []
    for importer, path in known.items():
        own = around(importer) | {importer} | OPEN
        for target, names in imports(importer, path):
            # A module of a package that has nothing of that name in its face
            hidden = [
                f'{target}.{name}'
                for name in names
                if f'{target}.{name}' in known and name not in faces[target]
            ]
            for module in (target, *hidden):
                if module in known and around(module) - own:
                    past.append(f'{importer} imports {module}')
    assert past == []


def test_no_circles_of_files():
    graph = grimp.build_graph('mmrobust', 'benchmarks', cache_dir=None)
    sorter = TopologicalSorter(
        {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(' <- '.join(error.args[1]))


# ------------------------------------------------------------------------ the page

PAGE = ROOT / 'docs' / 'architecture.md'


def blocks(language):
    """The page's blocks of code in a language."""
    return re.findall(rf'^```{language}\n(.*?)^```', PAGE.read_text(), re.M | re.S)


def test_the_tree_on_the_page_is_that_of_the_package():
    tree = blocks('text')[0]
    shown, folders = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = [*folders[:depth], name.removesuffix('/').removesuffix('.py')]
        shown.add('.'.join(folders))
    assert shown == {name for name in modules() if name.startswith('mmrobust')}


def test_the_recipes_on_the_page_work(monkeypatch):
    """As they stand there, with a tiny detector."""
    monkeypatch.setattr(ATTACKS, '_module_dict', dict(ATTACKS.module_dict))
    monkeypatch.setattr(ADVERSARIES, '_module_dict', dict(ADVERSARIES.module_dict))
    found = {}
    try:
        for code in blocks('python'):
            exec(code, found)
        model, batch = stored.detector('fcos'), updates.make_batch([(64, 96)], 0)
        images = float_images(batch, 'cpu')
        with loss_mode(model):
            oracle = LossOracle(model, batch, batch['data_samples'], found['objective'])
            before = oracle.value(images)
            moved = found['attack'].perturb(oracle, images, torch.Generator())
            assert oracle.value(moved) > before
        assert 0 < (moved[0] - images[0]).abs().max() <= 4
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
        logs = found['adversary'].train_step(model.train(), wrapper, batch, 0)
        assert logs['loss'].isfinite()
        names = {'encoder.weight': 0, 'projector.weight': 0}
        assert next(each for each in SOURCES if each.holds(names)).name == 'our lab'
    finally:
        NAMED.pop('centerness', None)
        SOURCES[:] = [each for each in SOURCES if each.name != 'our lab']


def test_scripts_import_mmrobust_before_parts_of_mmdet():
    """It stands in for mmcv's operators, which those ask for when they are imported."""
    wrong = []
    for folder in ('benchmarks', 'experiments', 'tools'):
        for path in sorted((ROOT / folder).rglob('*.py')):
            names = []
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names += [f'{node.module}.{alias.name}' for alias in node.names]
            ours = [n for n, name in enumerate(names) if name.startswith('mmrobust')]
            for name in names[: ours[0] if ours else None]:
                if name.startswith(('mmdet.', 'mmpretrain.')):
                    wrong.append(f'{path.relative_to(ROOT)}: {name}')
    assert not wrong
