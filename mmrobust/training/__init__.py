"""Adversarial training: loops, methods, replay, optimizer rules and exact resume.

One key of a config apart: ``train_cfg.adversary.type`` is ``mmrobust.FreeAdversary``,
``PGDAdversary`` (one step: fast AT), ``APGDAdversary``, ``MTDAdversary``,
``CWATAdversary`` or ``NoAdversary`` (the control).
"""

from __future__ import annotations

from .adversary import Adversary, NoAdversary
from .free import FreeAdversary
from .freeze import FreezeBackboneHook
from .inner_attack import (
    APGDAdversary,
    AttackAdversary,
    CWATAdversary,
    MTDAdversary,
    PGDAdversary,
)
from .loops import AdvEpochBasedTrainLoop, AdvIterBasedTrainLoop
from .optim import (
    BackboneLrOptimWrapperConstructor,
    BFloat16OptimWrapper,
    Rates,
    RelativeOneCycleLR,
    RelativePolyLR,
)
from .pbcat import PBCATAdversary
from .rates import follow_rates
from .resume import SeedUpdatesHook, TrainingStateHook, newest_checkpoint
from .sharded import FSDPStrategy

__all__ = [
    'APGDAdversary',
    'AdvEpochBasedTrainLoop',
    'AdvIterBasedTrainLoop',
    'Adversary',
    'AttackAdversary',
    'BFloat16OptimWrapper',
    'BackboneLrOptimWrapperConstructor',
    'CWATAdversary',
    'FSDPStrategy',
    'FreeAdversary',
    'FreezeBackboneHook',
    'MTDAdversary',
    'NoAdversary',
    'PBCATAdversary',
    'PGDAdversary',
    'Rates',
    'RelativeOneCycleLR',
    'RelativePolyLR',
    'SeedUpdatesHook',
    'TrainingStateHook',
    'follow_rates',
    'newest_checkpoint',
]
