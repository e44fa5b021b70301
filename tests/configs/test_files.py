"""Every config parses, builds what it names, and has no setting that goes unread."""

import ast
import functools
import inspect
import re

import pytest
from config_files import (
    CONFIGS,
    OF_DETECTORS,
    PARTS,
    READ,
    WHOLE,
    name_of,
    parameter_groups,
    parse,
    without_downloads,
    without_memory,
)
from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.hub import get_config
from mmengine.registry import LOOPS, OPTIMIZERS, PARAM_SCHEDULERS, init_default_scope
from mmrobust.registry import ADVERSARIES, ATTACKS


def test_there_are_configs():
    """The parametrized tests below would pass on an empty folder."""
    assert len(WHOLE) >= 40
    assert len(PARTS) >= 14


def expand(pattern):
    """Names that a shell makes of ``a_{b,c}.py``."""
    found = re.search(r'\{([^{}]*)\}', pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [
        name
        for choice in found[1].split(',')
        for name in expand(before + choice + after)
    ]


def test_the_readme_names_them_all():
    """By patterns like ``robust_{fcos,dn-detr}_r50.py``, and it names no others."""
    tables = [
        line
        for line in (CONFIGS / 'README.md').read_text().splitlines()
        if line.startswith('| `')
    ]
    named = [
        name
        for line in tables
        for pattern in re.findall(r'`([^`]+\.py)`', line)
        for name in expand(pattern)
    ]
    assert sorted(named) == sorted(name_of(path) for path in WHOLE + PARTS)


@pytest.mark.parametrize('path', OF_DETECTORS, ids=name_of)
def test_a_config_builds(path):
    cfg = without_downloads(parse(path))
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with without_memory():
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) > 1e5
    blocks = set(cfg.get('strategy', {}).get('blocks', ()))
    assert blocks <= {type(module).__name__ for module in model.modules()}
    # The optimizer groups exist (and the backbone's multiplier matches something).
    assert parameter_groups(model, cfg)
    # Loops: arguments that fit, an adversary and attacks that build.
    for key in ('train_cfg', 'val_cfg', 'test_cfg'):
        loop = LOOPS.get(cfg[key].type)
        assert loop is not None, cfg[key].type
        arguments = {k: v for k, v in cfg[key].items() if k not in ('type', '_scope_')}
        accepted = set()
        for kind in inspect.getmro(loop)[:-1]:
            accepted |= set(inspect.signature(kind.__init__).parameters)
        assert set(arguments) <= accepted
        if 'adversary' in arguments:
            assert ADVERSARIES.build(arguments['adversary']).describe()['eps'] > 0
        for attack in arguments.get('attacks', {}).values():
            assert ATTACKS.build(attack).describe()['eps'] > 0


@pytest.mark.parametrize('path', WHOLE, ids=name_of)
def test_all_types_of_a_config_exist(path):
    """A wrong name would only show when a long training reaches it."""
    cfg = parse(path)
    init_default_scope(cfg.get('default_scope', 'mmdet'))

    def as_list(node):
        return node if isinstance(node, list) else [node]

    def exists(registry, node):
        kind = node['type']
        with registry.switch_scope_and_registry(node.get('_scope_')) as scoped:
            assert scoped.get(kind) is not None, kind

    def check_dataset(node):
        exists(DATASETS, node)
        for transform in node.get('pipeline', []):
            exists(TRANSFORMS, transform)
        inner = node.get('datasets', [])
        inner = [*inner, node.dataset] if 'dataset' in node else inner
        return len(node.get('pipeline', [])) + sum(check_dataset(n) for n in inner)

    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert check_dataset(cfg[key].dataset) > 0
    for key in ('val_evaluator', 'test_evaluator'):
        for metric in as_list(cfg[key]):
            exists(METRICS, metric)
    hooks = list(cfg.get('default_hooks', {}).values()) + cfg.get('custom_hooks', [])
    for hook in hooks:
        exists(HOOKS, hook)
    for scheduler in as_list(cfg.param_scheduler):
        exists(PARAM_SCHEDULERS, scheduler)
    exists(OPTIMIZERS, cfg.optim_wrapper.optimizer)


@pytest.mark.parametrize('path', OF_DETECTORS, ids=name_of)
def test_the_batch_that_the_rate_is_for(path):
    """What `--auto-scale-lr` needs; the README names the exceptions from 16."""
    cfg = parse(path)
    if 'demo' in path.parts:
        assert 'auto_scale_lr' not in cfg
        return
    batch = 64 if 'ssd' in path.stem else 32 if 'deformable' in path.stem else 16
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=batch)


@functools.cache
def source(path):
    """The syntax of a config, where ``{{_base_.x}}`` reads as ``_base_.x``."""
    return ast.parse(re.sub(r'\{\{\s*(_base_[\w.]+)\s*\}\}', r'\1', path.read_text()))


def bases(path):
    for node in source(path).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            return [value] if isinstance(value, str) else value
    return []


def own_files(path):
    """The config and those in this repository that it derives from."""
    found = {path}
    for base in bases(path):
        if '::' not in base:
            found |= own_files((path.parent / base).resolve())
    return found


def defined(path):
    """Names that a file assigns."""
    return {
        node.targets[0].id
        for node in source(path).body
        if isinstance(node, ast.Assign) and node.targets[0].id != '_base_'
    }


def used(path):
    """Names that a file reads, its own and its bases'."""
    names = set()
    for node in ast.walk(source(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
    return names


@functools.cache
def mmdet_keys(name):
    return set(get_config(name))


@pytest.mark.parametrize('path', WHOLE, ids=name_of)
def test_no_setting_goes_unread(path):
    """Runner takes what it knows from a config and ignores the rest in silence."""
    known = set(READ)
    for file in own_files(path):
        known |= used(file)
        known |= defined(file) if file in PARTS else set()
        for base in bases(file):
            known |= mmdet_keys(base) if '::' in base else set()
    assert set(parse(path)) <= known


def test_no_variable_of_a_part_goes_unread():
    read = set(READ)
    for path in WHOLE + PARTS:
        read |= used(path)
    for path in PARTS:
        assert defined(path), name_of(path)
        assert defined(path) <= read, name_of(path)


def test_parts_are_in_use():
    """Adversaries may be put in place of each other."""
    inherited = set().union(*map(own_files, WHOLE))
    unused = {p for p in PARTS if p.parent.name != 'adversaries'} - inherited
    assert not unused


ADVERSARY_PARTS = [p for p in PARTS if p.parent.name == 'adversaries']


@pytest.mark.parametrize('path', ADVERSARY_PARTS, ids=name_of)
def test_an_adversary_builds(path):
    cfg = parse(path)
    assert set(cfg) == {'adversary'}
    eps = ADVERSARIES.build(cfg.adversary).describe()['eps']
    assert eps == (0 if path.stem == 'none' else 4)
