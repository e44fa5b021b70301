"""What mmengine does around a run, shortened: it takes longer than many a test's run.

Runners print and save their config, laid out by yapf; datasets collect garbage; a name
like ``mmdet::fcos/x.py`` is looked up in a hundred files; reports read the metadata of
installed packages. Trials, pictures and intervals take longer than attacks on tiny
detectors.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from mmengine.fileio import load
from mmrobust.evaluation.box_analysis import BoxAnalysis
from mmrobust.evaluation.loops import AttackTestLoop


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Shortens it in this process, until the patch is undone."""
    patch.setattr(
        'mmengine.config.config.FormatCode', lambda text, **options: (text, True)
    )
    patch.setattr(
        'mmengine.dataset.base_dataset.gc', SimpleNamespace(collect=lambda: 0)
    )
    patch.setattr('mmengine.config.utils.load', cache(load))
    patch.setattr('mmrobust.report.robustness.version', cache(version))
    patch.setattr(BoxAnalysis.__init__, '__defaults__', (0, 20))  # resamples
    patch.setattr(AttackTestLoop, 'default_check_images', 0)
    patch.setattr(AttackTestLoop, 'default_gallery', 0)
