"""Measuring instruments of the developers, run from the root of the repository.

``python -m benchmarks.cost`` and ``python -m benchmarks.gpu`` measure time and memory
of attacks and updates, ``python -m benchmarks.command`` of whole evaluations, and
``python -m benchmarks.coverage`` tries every model family of mmdet.
"""
