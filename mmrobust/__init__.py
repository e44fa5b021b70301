"""mmrobust: robust object detection for MMDetection.

``custom_imports = dict(imports=['mmrobust'])`` in a config is all that a project
needs: importing the package registers its parts and, where mmcv comes without its
compiled operators, lets torchvision's kernels stand in for them.
"""

from __future__ import annotations

from typing import Any

from . import compat
from .version import __version__

compat.install()

__all__ = ['Defended', '__version__', 'robustify']


def __getattr__(name: str) -> Any:
    # On demand: a config that imports the package should not pay for this.
    if name == 'robustify':
        from .recipe import robustify

        return robustify
    if name == 'Defended':
        from .models import Defended

        return Defended
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
