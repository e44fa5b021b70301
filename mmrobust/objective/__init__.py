"""What an adversary maximises: the detector's training loss, parts or turns of it.

An :class:`Objective` says which loss terms, on which ground truth, with which sign;
:class:`LossOracle` evaluates it image by image inside :func:`loss_mode`.
"""

from __future__ import annotations

from .base import NAMED, Objective
from .mode import loss_mode
from .oracle import LossOracle, gradients

__all__ = ['NAMED', 'LossOracle', 'Objective', 'gradients', 'loss_mode']
