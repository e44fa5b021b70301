"""mmrobust: robust object detection for MMDetection.

``custom_imports = dict(imports=['mmrobust'])`` in a config is all that a project
needs: importing the package registers its parts and, where mmcv comes without its
compiled operators, lets torchvision's kernels stand in for them.
"""

from __future__ import annotations

from . import compat
from .version import __version__

compat.install()

__all__ = ['__version__']
