"""Loops, hooks and optimizer rules that plug into mmengine's Runner."""

from __future__ import annotations

from ..utils.acceleration import Acceleration
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
from .hooks import AttackVisualizationHook
from .optim import BackboneLrOptimWrapperConstructor, BFloat16OptimWrapper
from .train_loops import AdvEpochBasedTrainLoop, AdvIterBasedTrainLoop
from .training_state import TrainingStateHook

__all__ = [
    'APGDAdversary',
    'Acceleration',
    'AdvEpochBasedTrainLoop',
    'AdvIterBasedTrainLoop',
    'Adversary',
    'AttackTestLoop',
    'AttackValLoop',
    'AttackVisualizationHook',
    'BFloat16OptimWrapper',
    'BackboneLrOptimWrapperConstructor',
    'CWATAdversary',
    'FreeAdversary',
    'FreezeBackboneHook',
    'MTDAdversary',
    'NoAdversary',
    'PGDAdversary',
    'SeedUpdatesHook',
    'TrainingStateHook',
]
