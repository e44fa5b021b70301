"""The transfer study of arXiv 2007.08489: does a robust backbone transfer better?

One target task, backbones pre-trained at several eps, and two ways to learn the task
from each: on fixed features, or with the full network.
"""

from __future__ import annotations

from .plan import MODES, Run, Sweep, parse_checkpoints
from .sweep import run_sweep
from .table import summarize

__all__ = ['MODES', 'Run', 'Sweep', 'parse_checkpoints', 'run_sweep', 'summarize']
