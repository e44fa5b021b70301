"""Training methods: what happens to a batch before the weights are updated.

One key of a config apart: ``train_cfg.adversary.type`` is ``mmrobust.FreeAdversary``,
``PGDAdversary`` (one step: fast AT), ``APGDAdversary``, ``MTDAdversary``,
``CWATAdversary`` or ``NoAdversary`` (the control).
"""

from __future__ import annotations

from .base import Adversary, NoAdversary
from .free import FreeAdversary
from .inner import APGDAdversary, CWATAdversary, MTDAdversary, PGDAdversary

__all__ = [
    'APGDAdversary',
    'Adversary',
    'CWATAdversary',
    'FreeAdversary',
    'MTDAdversary',
    'NoAdversary',
    'PGDAdversary',
]
