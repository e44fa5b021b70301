"""Registries of mmrobust, children of mmengine's root registries.

``type='mmrobust.X'`` finds a class from any scope without further imports: mmengine
imports this module and the locations named here on first use. Being a child of the
root (not of mmdet's registry) is what makes that lookup work from mmpretrain too.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_INITIALIZERS
from mmengine.registry import Registry

LOOPS = Registry(
    'loop',
    parent=MMENGINE_LOOPS,
    scope='mmrobust',
    locations=['mmrobust.training', 'mmrobust.evaluation', 'mmrobust.autoattack'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmrobust',
    locations=['mmrobust.training', 'mmrobust.evaluation'],
)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mmrobust',
    locations=['mmrobust.training'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_CONSTRUCTORS,
    scope='mmrobust',
    locations=['mmrobust.training'],
)
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmrobust',
    locations=['mmrobust.datasets'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmrobust',
    locations=['mmrobust.datasets'],
)
MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmrobust',
    locations=['mmrobust.models'],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=MMENGINE_INITIALIZERS,
    scope='mmrobust',
    locations=['mmrobust.weights'],
)


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
