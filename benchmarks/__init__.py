"""Measuring instruments of the developers, run from the root of the repository.

``python -m benchmarks.cost`` and ``python -m benchmarks.throughput`` measure time and
memory, ``python -m benchmarks.coverage`` tries every model family of mmdet.
"""
