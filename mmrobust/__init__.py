"""mmrobust: robust object detection for MMDetection.

``custom_imports = dict(imports=['mmrobust'])`` in a config is all that a project
needs: importing the package registers its parts and, where mmcv comes without its
compiled operators, lets torchvision's kernels stand in for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import compat
from .version import __version__

if TYPE_CHECKING:  # for type checkers, and for the pages of the API
    from .api import attack, evaluate, load
    from .models import Defended, ForeignDetector
    from .recipe import robustify

compat.install()

# Where each name lies: read on demand, as a config that imports the package should not
# pay for all of it.
_PLACES = {
    'Defended': 'models',
    'ForeignDetector': 'models',
    'attack': 'api',
    'evaluate': 'api',
    'load': 'api',
    'robustify': 'recipe',
}

__all__ = [
    'Defended',
    'ForeignDetector',
    '__version__',
    'attack',
    'evaluate',
    'load',
    'robustify',
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f'.{_PLACES[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
