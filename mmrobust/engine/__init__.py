"""Loops, hooks and optimizer rules that plug into mmengine's Runner."""

from __future__ import annotations

from .acceleration import Acceleration
from .adversaries import (
    Adversary,
    APGDAdversary,
    CWATAdversary,
    FreeAdversary,
    MTDAdversary,
    NoAdversary,
    PGDAdversary,
)
from .eval_loops import AttackTestLoop, AttackValLoop
from .freeze import FreezeBackboneHook, SeedUpdatesHook
from .hooks import AdversaryStateHook, AttackVisualizationHook
from .optim import BackboneLrOptimWrapperConstructor
from .train_loops import AdvEpochBasedTrainLoop, AdvIterBasedTrainLoop

__all__ = [
    'APGDAdversary',
    'Acceleration',
    'AdvEpochBasedTrainLoop',
    'AdvIterBasedTrainLoop',
    'Adversary',
    'AdversaryStateHook',
    'AttackTestLoop',
    'AttackValLoop',
    'AttackVisualizationHook',
    'BackboneLrOptimWrapperConstructor',
    'CWATAdversary',
    'FreeAdversary',
    'FreezeBackboneHook',
    'MTDAdversary',
    'NoAdversary',
    'PGDAdversary',
    'SeedUpdatesHook',
]
