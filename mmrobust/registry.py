"""Registries of mmrobust, children of mmengine's root registries.

``type='mmrobust.X'`` finds a class from any scope without further imports: mmengine
imports this module and the locations named here on first use. Being a child of the
root (not of mmdet's registry) is what makes that lookup work from mmpretrain too.
"""

from __future__ import annotations

from typing import Any

from mmengine import registry as root
from mmengine.registry import Registry


def _child(name: str, parent: Registry, *packages: str) -> Registry:
    locations = [f'mmrobust.{package}' for package in packages]
    return Registry(name, parent=parent, scope='mmrobust', locations=locations)


LOOPS = _child(
    *('loop', root.LOOPS, 'training', 'evaluation', 'autoattack', 'fitting'),
)
HOOKS = _child('hook', root.HOOKS, 'training', 'evaluation', 'weights')
OPTIM_WRAPPERS = _child('optim_wrapper', root.OPTIM_WRAPPERS, 'training')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, 'training'
)
PARAM_SCHEDULERS = _child('parameter scheduler', root.PARAM_SCHEDULERS, 'training')
DATASETS = _child('dataset', root.DATASETS, 'datasets')
TRANSFORMS = _child('transform', root.TRANSFORMS, 'datasets')
STRATEGIES = _child('strategy', root.STRATEGIES, 'training')
MODELS = _child('model', root.MODELS, 'models')
WEIGHT_INITIALIZERS = _child('weight initializer', root.WEIGHT_INITIALIZERS, 'weights')


class _RootRegistry(Registry):
    """A root of its own, which mmengine need not look for in the default scope."""

    def build(self, cfg: dict, *args: Any, **kwargs: Any) -> Any:
        """Builds an object; without a scope, mmengine would warn every time."""
        return super().build({'_scope_': 'mmrobust', **cfg}, *args, **kwargs)


# No counterpart in mmengine.
ATTACKS = _RootRegistry('attack', scope='mmrobust', locations=['mmrobust.attacks'])
ADVERSARIES = _RootRegistry(
    'adversary', scope='mmrobust', locations=['mmrobust.training']
)
