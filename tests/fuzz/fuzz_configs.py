"""Cases of configs: a good one with something wrong at any place, or no config."""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any

from fuzz_case import HERE, PROJECT, VALUES, Case, config_text, misspelt
from fuzz_project import classifier, detector

# Files that are no config, and what has to be in the message beside their name.
NO_CONFIGS: dict[str, str] = {
    'empty': '',
    'cut': 'model = dict(type=',
    'spaces': 'model = dict()\n  x = 1\n',
    'tabs': 'if True:\n\tx = 1\n        y = 2\n',
    'circle': "_base_ = './mine.py'\nmodel = dict(type='FCOS')\n",
    'pair': "_base_ = './other.py'\nmodel = dict(type='FCOS')\n",
    'bare': '\x00\x01\x02',
    'prose': 'this is not a config\n',
    'html': '<!DOCTYPE html><html></html>',
    'json': '{"model": {"type": "FCOS"}}',
    'yaml': 'model:\n  type: FCOS\n',
    'number_base': '_base_ = 5\nmodel = dict()\n',
    'list_base': '_base_ = [None]\nmodel = dict()\n',
    'folder_base': f"_base_ = '{PROJECT}/folder'\nmodel = dict()\n",
    'gone_base': "_base_ = 'gone.py'\nmodel = dict()\n",
    'package_base': "_base_ = 'mmdet::gone/gone.py'\nmodel = dict()\n",
    'no_package_base': "_base_ = 'nopackage::a/b.py'\nmodel = dict()\n",
    'broken_base': f"_base_ = '{PROJECT}/text.pth'\nmodel = dict()\n",
    'name': 'model = unknown\n',
    'raises': 'raise RuntimeError("x")\n',
    'leaves': 'import sys\nsys.exit(3)\n',
    'leaves_quietly': 'raise SystemExit\n',
    'asserts': 'assert False\n',
    'recursion': 'def f():\n    return f()\nmodel = f()\n',
    'imports': 'import nonexistent_package\nmodel = dict()\n',
    'relative': 'from . import x\nmodel = dict()\n',
    'division': 'model = dict(x=1 / 0)\n',
    'none': 'model = None\n',
    'number': 'model = 5\n',
    'string': "model = 'FCOS'\n",
    'list': 'model = [dict()]\n',
    'function': 'model = lambda: 0\n',
    'module': 'import os\nmodel = os\n',
    'typeless': 'model = dict(backbone=dict())\n',
    'placeholder': "model = dict(type='{{ fileBasename }}')\n",
    'variable': "model = dict(type='{{$NOT_SET:}}')\n",
    'reserved': 'filename = 1\nmodel = dict()\n',
    'base_variable': "model = dict(type='{{_base_.gone}}')\n",
    'deep': 'model = ' + '[' * 150 + ']' * 150 + '\n',
    'deeper': 'model = ' + '(' * 5000 + ')' * 5000 + '\n',
    'long': 'model = dict(type="FCOS")\nx = [' + '0, ' * 5000 + ']\n',
    'imports_number': "model = dict(type='FCOS')\ncustom_imports = 5\n",
    'imports_gone': "model = dict()\ncustom_imports = dict(imports=['gone_package'])\n",
    'lazy': (
        'from mmengine.config import read_base\nwith read_base():\n'
        '    from .gone import *\nmodel = dict()\n'
    ),
    'lazy_imports': (
        'from mmdet.models import Gone\nfrom mmengine.config import read_base\n'
        'with read_base():\n    pass\nmodel = dict(type=Gone)\n'
    ),
    'delete': "_delete_ = True\nmodel = dict(_delete_=True, type='FCOS')\n",
    'deprecated': "model = dict(type='FCOS')\n_deprecation_ = 5\n",
}
_ENDINGS = ('.py', '.py', '.py', '.json', '.yaml', '.txt', '')
_BYTES = ('utf-16', 'latin-1', 'binary', 'marked', 'windows')

# Of the settings, those a child config is most likely to change.
_OURS = ('train_cfg', 'test_cfg', 'optim_wrapper')


def draw(rng: Random, number: int) -> Case:
    """A case; two of three are mutations."""
    name = f'configs-{number}'
    if number % 4 == 3:
        return _no_config(rng, name, number // 4)
    return _mutation(rng, name, number)


def _no_config(rng: Random, name: str, number: int) -> Case:
    kinds = [*NO_CONFIGS, *_BYTES]
    kind = kinds[number % len(kinds)]
    file = 'mine' + ('.py' if number < len(kinds) else rng.choice(_ENDINGS))
    if kind in ('json', 'yaml'):
        file = f'mine.{kind}'
    tool = rng.choice(('train.py', 'test.py', 'benchmark.py', 'transfer.py'))
    argv = [f'{HERE}/given/{file}', *_more(tool)]
    files = {'given/other.py': f"_base_ = './{file}'\n"}
    prepare = None
    if kind in NO_CONFIGS:
        files[f'given/{file}'] = NO_CONFIGS[kind]
    else:

        def prepare(project: Any, here: Any) -> None:
            text = 'model = dict(type="é")\nx = 1\n'
            content = {
                'utf-16': text.encode('utf-16'),
                'latin-1': text.encode('latin-1'),
                'binary': bytes(range(256)),
                'marked': b'\xef\xbb\xbf' + text.encode(),
                'windows': text.replace('\n', '\r\n').encode(),
            }[kind]
            (here / 'given' / file).write_bytes(content)

    # Some are read, and found wrong later.
    return Case(name, tool, argv, (file, 'model', 'FCOS'), files, prepare, fails=True)


def _more(tool: str) -> list[str]:
    work = ['--work-dir', f'{HERE}/work']
    if tool == 'benchmark.py':
        return []
    if tool == 'test.py':
        return [f'{PROJECT}/good.pth', *work]
    if tool == 'transfer.py':
        return ['--checkpoints', f'0={PROJECT}/good.pth', *work]
    return work


def _mutation(rng: Random, name: str, number: int) -> Case:
    cfg = classifier() if rng.random() < 0.15 else detector()
    weights = 'good' if cfg['default_scope'] == 'mmdet' else 'classifier'
    culprits: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        culprits += _mutate(rng, cfg, only_ours=number % 3 == 0)
    section = culprits[0]
    tools = {'train': 'train.py', 'optim': 'train.py', 'param': 'train.py'}
    tool = tools.get(section.split('_')[0]) or (
        'test.py' if section.startswith('test') else rng.choice(('train.py', 'test.py'))
    )
    argv = [f'{HERE}/given/mine.py']
    argv += [f'{PROJECT}/{weights}.pth'] if tool == 'test.py' else []
    argv += ['--work-dir', f'{HERE}/work']
    files = {'given/mine.py': config_text(cfg)}
    return Case(name, tool, argv, tuple(culprits), files)


def _mutate(rng: Random, cfg: dict[str, Any], only_ours: bool) -> list[str]:
    """Makes one setting wrong; returns what a message about it could name."""
    places = [p for p in _places(cfg) if not only_ours or p[0] in _OURS]
    path = rng.choice(places)
    node: Any = cfg
    names = []
    for key in path[:-1]:
        names.append(key)
        node = node[key]
        if isinstance(node, dict):
            names.append(node.get('type'))
    key = path[-1]
    value = node[key]
    kind = rng.choice(('value', 'value', 'value', 'gone', 'renamed', 'type', 'wrapped'))
    if kind == 'gone' or (kind == 'renamed' and not isinstance(key, str)):
        del node[key]
    elif kind == 'renamed':
        new = misspelt(rng, key)
        node[new] = node.pop(key)
        names.append(new)
    elif kind == 'type' and isinstance(value, dict) and 'type' in value:
        node[key] = {**value, 'type': misspelt(rng, str(value['type']))}
        names.append(node[key]['type'])
    elif kind == 'wrapped':
        node[key] = rng.choice(([value], {'x': value}, [value, value], (value,)))
    else:
        node[key] = deepcopy(rng.choice(VALUES))
    names.append(key)
    if isinstance(value, dict):
        names.append(value.get('type'))
    # What a message can name of things that have no name of their own.
    if names[0] == 'custom_imports':
        names.append('import')
    if names[0] == 'default_scope':
        names.append('registry')
    if 'paramwise_cfg' in names:
        names.append('backbone_lr_mult')
    if names[0].endswith('dataloader'):
        names.append('data loader')
    if 'pipeline' in names:
        names += ['data', 'image']
    found = [str(each) for each in names if each is not None]
    return [each.removeprefix('mmrobust.') for each in found if not each.isdigit()]


def _places(node: Any, path: tuple = ()) -> list[tuple]:
    """Where anything stands in a config."""
    found = [path] if path else []
    if isinstance(node, dict):
        items: Any = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        items = ()
    for key, value in items:
        found += _places(value, (*path, key))
    return found
