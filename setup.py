"""Packaging that pyproject.toml cannot say: configs and tools inside the package.

OpenMMLab's `mim` looks for a package's configs and tools in its folder `.mim`. A build
copies them there; an editable install links them.
"""

import os
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = os.path.dirname(os.path.abspath(__file__))
FOLDERS = ('configs', 'tools')


class BuildWithMim(build_py):
    """Puts configs/ and tools/ beside the built package, not into the source tree."""

    def run(self):
        """Build the package, then add the folders."""
        if not self.editable_mode:
            # An earlier build's copy would keep modules that were deleted since.
            built = os.path.join(self.build_lib, 'mmrobust')
            shutil.rmtree(built, ignore_errors=True)
        super().run()
        for folder in FOLDERS:
            source = os.path.join(ROOT, folder)
            if self.editable_mode:
                self._link(source, os.path.join(ROOT, 'mmrobust', '.mim', folder))
            else:
                target = os.path.join(self.build_lib, 'mmrobust', '.mim', folder)
                ignored = shutil.ignore_patterns('__pycache__', '*.pyc')
                shutil.copytree(source, target, ignore=ignored)

    @staticmethod
    def _link(source, target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.lexists(target):
            return
        try:
            os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
        except OSError as error:  # Windows without the right to make links
            print(f'mim will not find {target}: {error}')


setup(cmdclass={'build_py': BuildWithMim})
