"""mmdet's own model families at a size for a CPU, with a synthetic batch for each."""

from __future__ import annotations

from benchmarks.zoo.batch import tiny_batch
from benchmarks.zoo.families import OUT_OF_SCOPE, config_root, families, representative
from benchmarks.zoo.shrink import tiny_model

__all__ = [
    'OUT_OF_SCOPE',
    'config_root',
    'families',
    'representative',
    'tiny_batch',
    'tiny_model',
]
