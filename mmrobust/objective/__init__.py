"""Defines what an adversary maximises: a detector's training loss, or parts of it.

An :class:`Objective` says which loss terms, on which ground truth, with which sign;
:class:`LossOracle` evaluates it image by image inside :func:`loss_mode`, and
:class:`StackedOracle` several images in one pass of the network, where a model allows.
"""

from __future__ import annotations

from .base import Objective
from .batched import StackedOracle, find_seams
from .class_weights import (
    class_weights,
    classes_of,
    count_classes,
    weighted_classification_loss,
    weights_for_evaluation,
)
from .classifier import (
    ClassifierOracle,
    check_labels,
    classifier_samples,
    make_oracle,
    mixed_first,
)
from .detections import DetectionOracle, has_boxes
from .expectation import expected
from .inputs import Inputs
from .kinds import NAMED, TARGETS, Kind
from .latency import classes_at_once, counting, threshold_of
from .loss_mode import LossState, is_classifier, loss_mode
from .oracle import LossOracle, gradients
from .predictions import suppressing
from .seams import NotStackedError, Seams

__all__ = [
    'NAMED',
    'TARGETS',
    'ClassifierOracle',
    'DetectionOracle',
    'Inputs',
    'Kind',
    'LossOracle',
    'LossState',
    'NotStackedError',
    'Objective',
    'Seams',
    'StackedOracle',
    'check_labels',
    'class_weights',
    'classes_at_once',
    'classes_of',
    'classifier_samples',
    'count_classes',
    'counting',
    'expected',
    'find_seams',
    'gradients',
    'has_boxes',
    'is_classifier',
    'loss_mode',
    'make_oracle',
    'mixed_first',
    'suppressing',
    'threshold_of',
    'weighted_classification_loss',
    'weights_for_evaluation',
]
