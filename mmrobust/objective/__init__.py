"""Defines what an adversary maximises: a detector's training loss, or parts of it.

An :class:`Objective` says which loss terms, on which ground truth, with which sign;
:class:`LossOracle` evaluates it image by image inside :func:`loss_mode`, and
:class:`StackedOracle` several images in one pass of the network, where a model allows.
"""

from __future__ import annotations

from .base import NAMED, TARGETS, Objective
from .batched import NotStackedError, Seams, StackedOracle, find_seams
from .loss_mode import LossState, loss_mode
from .oracle import LossOracle, gradients

__all__ = [
    'NAMED',
    'TARGETS',
    'LossOracle',
    'LossState',
    'NotStackedError',
    'Objective',
    'Seams',
    'StackedOracle',
    'find_seams',
    'gradients',
    'loss_mode',
]
