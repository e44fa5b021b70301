"""Reads configs of mmengine and overrides settings, with mistakes as sentences."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS
from mmengine.utils import get_object_from_string

from ..errors import ConfigError, short

# What sections of a config have to be, by key or by the end of the key.
_SECTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(('model', 'dataloader', 'preprocessor'), (dict,)),
    **dict.fromkeys(('train_cfg', 'val_cfg', 'test_cfg', 'env_cfg'), (dict,)),
    **dict.fromkeys(('optim_wrapper', 'default_hooks', 'custom_imports'), (dict,)),
    **dict.fromkeys(('auto_scale_lr', 'visualizer', 'randomness'), (dict,)),
    **dict.fromkeys(('evaluator', 'param_scheduler'), (dict, list)),
    **dict.fromkeys(('work_dir', 'load_from', 'data_root'), (str,)),
    **dict.fromkeys(('default_scope', 'experiment_name', 'runner_type'), (str,)),
    'custom_hooks': (list,),
    'resume': (bool,),
}
_IN_WORDS = {dict: 'a dict', list: 'a list', str: 'a text', bool: 'True or False'}


def read_config(path: str) -> Config:
    """Reads a config.

    Args:
        path: a file, or the name of a config inside a package, as ``_base_`` takes it:
            ``'mmdet::fcos/...'``.

    Raises:
        ConfigError: if it does not exist, cannot be parsed or has no model.
    """
    in_package = '::' in path
    package = path.split('::')[0]
    if in_package and (not package.isidentifier() or find_spec(package) is None):
        # mmengine would install the package.
        raise ConfigError(f'config {path!r} is in a package that is not installed.')
    if not in_package and not os.path.isfile(path):
        raise ConfigError(f'config {path!r} does not exist: check the path.')
    try:
        cfg = _of_package(path) if in_package else Config.fromfile(path)
        _resolve(cfg)
    except FileNotFoundError as error:
        raise ConfigError(
            f'config {path!r} needs a file that is missing: {error}.'
        ) from error
    except (Exception, SystemExit) as error:  # a program, which fails like one
        reason = short(_reason(error)) or type(error).__name__
        raise ConfigError(f'config {path!r} cannot be read: {reason}.') from error
    if 'model' not in cfg:
        raise ConfigError(f'config {path!r} has no model.')
    return cfg


def _of_package(path: str) -> Config:
    from mmengine.hub import get_config  # brings torch

    return get_config(path)


def _reason(error: BaseException) -> str:
    """Says why something failed; of imports, which mmengine fails twice over, why."""
    causes = [error]
    while isinstance(causes[-1], ImportError) and (
        isinstance(inner := causes[-1].__context__, ImportError)
        and str(inner) not in str(causes[-1])
    ):
        causes.append(inner)
    text = ': '.join(map(str, causes[-2:]))
    if isinstance(causes[-1], ModuleNotFoundError):
        text += ' (install it, or add its folder to PYTHONPATH)'
    return text


def _resolve(node: Any) -> None:
    """Imports what a config of the lazy style names, which fails here or later."""
    if isinstance(node, (list, tuple)):
        for value in node:
            _resolve(value)
    elif isinstance(node, (dict, ConfigDict, Config)):
        for value in node.values():
            _resolve(value)


def check_sections(cfg: Config) -> None:
    """Makes sure that a config's sections are what the frameworks take them for.

    Raises:
        ConfigError: naming the first that is not.
    """
    for key, value in cfg.items():
        kinds = _SECTIONS.get(key) or _SECTIONS.get(key.rsplit('_', 1)[-1])
        if kinds is None or isinstance(value, kinds):
            continue
        if value is None and key != 'model':
            continue
        wanted = ' or '.join(_IN_WORDS[kind] for kind in kinds)
        raise ConfigError(f'{key}={short(repr(value))} of the config must be {wanted}.')


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merges ``--cfg-options``; a new ``data_root`` reaches datasets and evaluators.

    Config files put ``data_root`` into paths while they are read, so that overriding
    the variable alone would change nothing.

    Raises:
        ConfigError: for keys that cannot be set, and for a ``data_root`` that the
            config does not have.
    """
    old_root = cfg.get('data_root')
    try:
        cfg.merge_from_dict(options)
    except Exception as error:
        keys, reason = ', '.join(options), short(f'{type(error).__name__}: {error}')
        raise ConfigError(
            f'--cfg-options cannot set {keys!r} ({reason}): does the config have it?'
        ) from error
    new_root = options.get('data_root')
    if new_root is None:
        return
    if not old_root:
        raise ConfigError(
            'data_root is no setting of this config, so changing it has no effect: set '
            'the paths of the dataloaders and evaluators themselves.'
        )
    # Paths are joined by + in configs: keep the slash that they rely on.
    if old_root.endswith('/') and not new_root.endswith('/'):
        new_root += '/'
        cfg.data_root = new_root
    for key, value in cfg.items():
        if key.endswith(('dataloader', 'evaluator')):
            _replace_root(value, old_root, new_root)


def _replace_root(node: Any, old: str, new: str) -> None:
    items: Any = ()
    if isinstance(node, (dict, ConfigDict)):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    inside = old if old.endswith('/') else old + '/'
    for key, value in list(items):
        if isinstance(value, str) and (value == old or value.startswith(inside)):
            node[key] = new + value[len(old) :]
        else:
            _replace_root(value, old, new)


@contextmanager
def naming_bad_json(cfg: Config) -> Iterator[None]:
    """Says of JSON that cannot be read which annotation file of a config holds it.

    Raises:
        ConfigError: with that file's name.
    """
    unreadable = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)
    try:
        yield
    except unreadable as error:
        for path in _annotation_files(cfg):
            try:
                with open(path, 'rb') as file:
                    json.load(file)
            except unreadable as reason:
                raise ConfigError(
                    f'annotation file {path} is no valid JSON ({short(str(reason))}): '
                    'is it complete?'
                ) from error
            except OSError:
                continue
        raise


def _annotation_files(cfg: Config) -> Iterator[str]:
    """Yields the annotation files that datasets and evaluators of a config name."""
    for key, value in cfg.items():
        nodes: list[Any] = []
        if key.endswith('dataloader') and value:
            nodes = innermost(value.get('dataset') or {})
        elif key.endswith('evaluator'):
            nodes = value if isinstance(value, list) else [value]
        for node in nodes:
            name = node.get('ann_file') if isinstance(node, dict) else None
            if isinstance(name, str) and name:
                yield os.path.join(node.get('data_root') or '', name)


def as_text(cfg: Config) -> Config:
    """Copies a config, with text in place of the classes of the lazy style.

    mmengine writes the path of a class's module, and does not find the class by it
    where the package has a function of the module's name (``smooth_l1_loss.L1Loss``).
    What is in ``mmcv.ops`` and in no registry (``nms``, ``RoIAlign``) is looked up
    there by its plain name.
    """
    content = deepcopy(cfg.to_dict())
    _name_classes(content)
    return Config(content, filename=cfg.filename)


def _name_classes(node: Any) -> None:
    if isinstance(node, (list, tuple)):
        for value in node:
            _name_classes(value)
    elif isinstance(node, dict):
        for key, value in node.items():
            _name_classes(value)
            if key.endswith('type') and isinstance(value, str):
                *modules, name = value.split('.')
                while len(modules) > 1:
                    path = '.'.join([*modules, name])
                    if found := get_object_from_string(path):
                        known = found in MODELS.module_dict.values()
                        plain = modules[:2] == ['mmcv', 'ops'] and not known
                        node[key] = name if plain else path
                        break
                    modules.pop()


def type_name(node: Any) -> str:
    """Returns the name of a config node's class, without scope, package or module.

    A type is a text (``'mmdet.FCOS'``) or, in configs of the lazy style, a class; a
    node without one has the name ``''``.
    """
    kind = node.get('type') if isinstance(node, dict) else None
    return str(getattr(kind, '__name__', kind or '')).split('.')[-1]


def innermost(dataset: dict) -> list[dict]:
    """Returns the datasets inside wrappers like RepeatDataset and ConcatDataset."""
    if 'datasets' in dataset:
        return [one for inner in dataset['datasets'] for one in innermost(inner)]
    if isinstance(dataset.get('dataset'), dict):
        return innermost(dataset['dataset'])
    return [dataset]


def class_of(dataset: dict) -> Any:
    """Finds the class of a dataset's config; None if it is unknown."""
    found = dataset['type']
    if isinstance(found, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            found = registry.get(found)
    return found


def meta_of(dataset: dict) -> dict[str, Any]:
    """Returns what a dataset's config and class tell of it, like its ``classes``."""
    told = getattr(class_of(dataset), 'METAINFO', {})
    return {**told, **(dataset.get('metainfo') or {})}
